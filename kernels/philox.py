"""Philox words of images, as in `philox.image_words`, and noise drawn from them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import cdiv
from .launch import launch, prepare

BLOCK = 256  # Philox calls per program


@triton.jit
def words_of(
    call, seed_ptr, seed, first_index_ptr, last_word, CALLS: tl.constexpr,
):  # fmt: skip
    """The four words of Philox call `call` (int64), which is call % CALLS of its image."""
    if seed_ptr is None:
        key = tl.full((1,), seed, tl.int64)
    else:
        key = tl.load(seed_ptr + tl.zeros((1,), tl.int32))
    index = tl.load(first_index_ptr) + call // CALLS
    counter = (call % CALLS).to(tl.uint32)
    last = (counter * 0).to(tl.int64) + last_word
    return tl.philox(
        key, counter, index.to(tl.uint32), (index >> 32).to(tl.uint32), last.to(tl.uint32)
    )


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
    w0, w1, w2, w3 = words_of(call, seed_ptr, seed, first_index_ptr, last_word, CALLS=CALLS)
    tl.store(words_ptr + 4 * call, w0.to(tl.int64), mask=mask)
    tl.store(words_ptr + 4 * call + 1, w1.to(tl.int64), mask=mask)
    tl.store(words_ptr + 4 * call + 2, w2.to(tl.int64), mask=mask)
    tl.store(words_ptr + 4 * call + 3, w3.to(tl.int64), mask=mask)


@triton.jit
def store_chosen(out_ptr, table_ptr, word, offset, mask):
    """Store the table's entry at the upper 23 bits of a word."""
    value = tl.load(table_ptr + (word >> 9).to(tl.int32), mask=mask, other=0.0)
    tl.store(out_ptr + offset, value, mask=mask)


@triton.jit
def noise_kernel(
    noise_ptr,  # (images, SIZE)
    table_ptr,  # (2**23,)
    seed_ptr, first_index_ptr, seed, last_word, total,
    SIZE: tl.constexpr, CALLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the noise of images: word i of an image selects element i."""
    call = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = call < total
    w0, w1, w2, w3 = words_of(call, seed_ptr, seed, first_index_ptr, last_word, CALLS=CALLS)
    element = 4 * (call % CALLS)
    offset = call // CALLS * SIZE + element
    store_chosen(noise_ptr, table_ptr, w0, offset, mask & (element < SIZE))
    store_chosen(noise_ptr, table_ptr, w1, offset + 1, mask & (element + 1 < SIZE))
    store_chosen(noise_ptr, table_ptr, w2, offset + 2, mask & (element + 2 < SIZE))
    store_chosen(noise_ptr, table_ptr, w3, offset + 3, mask & (element + 3 < SIZE))


def image_words(
    n_images: int, n_counters: int, seed: int | Tensor, first_index: Tensor, last_word: int
) -> Tensor:
    """`philox.image_words`: (n_images, n_counters, 4) int64, on first_index's device."""
    words = torch.empty((n_images, n_counters, 4), dtype=torch.int64, device=first_index.device)
    _launch(image_words_kernel, n_images, n_counters, seed, first_index, last_word, words_ptr=words)
    return words


def noise(
    n_images: int, size: int, table: Tensor, seed: int | Tensor, first_index: Tensor, last_word: int
) -> Tensor:
    """(n_images, size) entries of a table (2**23,), each selected by a word of its image."""
    chosen = torch.empty((n_images, size), dtype=table.dtype, device=table.device)
    _launch(
        noise_kernel, n_images, cdiv(size, 4), seed, first_index, last_word,
        constants={"SIZE": size}, noise_ptr=chosen, table_ptr=table,
    )  # fmt: skip
    return chosen


def as_int64(seed: int) -> int:
    """The int64 with the bits of a seed in 0 .. 2**64 - 1."""
    return seed - 2**64 if seed >= 2**63 else seed


def _launch(
    kernel: object,
    n_images: int,
    calls: int,
    seed: int | Tensor,
    first_index: Tensor,
    last_word: int,
    constants: dict[str, int] | None = None,
    **tensors: Tensor,
) -> None:
    seed_ptr, number = (seed, 0) if isinstance(seed, Tensor) else (None, as_int64(seed))
    total = n_images * calls
    prepared = prepare(
        (cdiv(total, BLOCK),),
        seed=number, last_word=last_word, total=total, CALLS=calls, BLOCK=BLOCK, num_warps=4,
        **(constants or {}),
    )  # fmt: skip
    launch(
        kernel, prepared, first_index.device,
        seed_ptr=seed_ptr, first_index_ptr=first_index, **tensors,
    )  # fmt: skip
