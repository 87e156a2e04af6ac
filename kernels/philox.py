"""Philox words of images, as in `philox.image_words`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsmooth.philox import Stream, seed_words, stream_word, whole_index

from .geometry import cdiv
from .launch import launch

BLOCK = 256  # Philox calls per program


@triton.jit
def image_words_kernel(
    words_ptr,  # (images, CALLS, 4) int64
    seed_ptr, first_index_ptr,  # int64 scalars; if seed_ptr is None, `seed` is used
    seed, last_word, total,
    CALLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the words of `total` Philox calls."""
    call = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = call < total
    if seed_ptr is None:
        key = tl.full((1,), seed, tl.int64)
    else:
        key = tl.load(seed_ptr + tl.zeros((1,), tl.int32))
    index = tl.load(first_index_ptr) + call // CALLS
    counter = (call % CALLS).to(tl.uint32)
    last = (counter * 0).to(tl.int64) + last_word
    w0, w1, w2, w3 = tl.philox(
        key, counter, index.to(tl.uint32), (index >> 32).to(tl.uint32), last.to(tl.uint32)
    )
    tl.store(words_ptr + 4 * call, w0.to(tl.int64), mask=mask)
    tl.store(words_ptr + 4 * call + 1, w1.to(tl.int64), mask=mask)
    tl.store(words_ptr + 4 * call + 2, w2.to(tl.int64), mask=mask)
    tl.store(words_ptr + 4 * call + 3, w3.to(tl.int64), mask=mask)


def image_words(
    n_images: int,
    n_counters: int,
    *,
    seed: int | Tensor,
    first_index: int | Tensor = 0,
    stream: Stream,
    repeat: int = 0,
    device: torch.device,
) -> Tensor:
    """`dsmooth.philox.image_words`."""
    seed_ptr, number = (seed, 0) if isinstance(seed, Tensor) else (None, seed)
    seed_words(number)  # refuses numbers out of range
    if not isinstance(first_index, Tensor):
        index = whole_index(first_index, n_images)
        first_index = torch.full((), index, dtype=torch.int64, device=device)
    words = torch.empty((n_images, n_counters, 4), dtype=torch.int64, device=device)
    total = n_images * n_counters
    launch(
        image_words_kernel, (cdiv(total, BLOCK),), device,
        words_ptr=words, seed_ptr=seed_ptr, first_index_ptr=first_index,
        # The int64 with the bits of a seed in 0 .. 2**64 - 1.
        seed=number - 2**64 if number >= 2**63 else number, last_word=stream_word(stream, repeat),
        total=total, CALLS=n_counters, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return words
