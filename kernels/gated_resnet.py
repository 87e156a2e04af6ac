"""The gated resnet: matmuls of rows (`matmul.py`), and what is computed between them.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

the latter plus a bias of each image, if there is one;
with E = concat_elu and dropout D. `expand` writes E(x), hidden_kernel ends in D E(h) too. Backward,
E is written again, and each data gradient ends with the slopes of elu. Saved for it are h, the
packed weights and, if they are to be kept, A and G; else gate_kernel with GRAD computes them anew.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .expand import Dropout, expand
from .gated_resnet_kernels import (
    gate_kernel,
    hidden_gradient_kernel,
    hidden_kernel,
    input_gradient_kernel,
    parameter_gradient_kernel,
)
from .gated_resnet_plans import Block, Needs, backward_plan, forward_plan
from .geometry import Rows, Taps, channels_last, empty_channels_last
from .launch import Plan, launch, wide_dtype
from .weight_gradients import NOTHING, Unpacking, unpack, unpacking
from .weights import dense, pack, strides_of, three


class Saved(NamedTuple):
    """What the forward leaves for the backward: h (B, F, H, W), the packed weights, and A and G as
    (B, 2F, H, W) if they are kept; images are channels_last."""

    h: Tensor
    packed: Tensor
    gates: Tensor | None


EVERYTHING = Needs()


def forward(
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    gains: list[Tensor],
    taps: Taps,
    dropout: Dropout,
    save: bool = True,
    keep: bool = False,
    image_bias: Tensor | None = None,
) -> tuple[Tensor, Saved]:
    """y (B, F, H, W) channels_last, and what the backward needs.

    weights, biases, gains: of conv_in, conv_out and, with skips, nin_skip; gains may be none.
    image_bias: (B, 2F), contiguous, or none.
    Without `save`, the packed weights lack what the backward alone reads; keep: A and G are saved.
    """
    x, skips = channels_last(x), [channels_last(skip) for skip in skips]
    f = x.shape[1]
    plans = forward_plan(Block.of(x, skips, taps, dropout), keep, image_bias is not None)
    packed = pack(weights, gains, [skip.shape[1] for skip in skips], x.dtype, adjoint=save)
    h, y = (empty_channels_last(x, f) for _ in range(2))
    gates = empty_channels_last(x, 2 * f) if keep else None
    e, kept = expand(plans.expand, x, x, skips, dropout.seed)
    launch(
        hidden_kernel, plans.hidden, x.device,
        e_ptr=e, w_ptr=packed, bias_ptr=biases[0], nin_bias_ptr=biases[-1], h_ptr=h,
        kept_ptr=x if kept is None else kept, eh_ptr=e,
    )  # fmt: skip
    _gate(plans.gate, e, packed, biases[1], image_bias, x, y, y if gates is None else gates, y)
    return y, Saved(h, packed, gates)


def _gate(
    plan: Plan,
    e: Tensor,
    w: Tensor,
    bias: Tensor,
    image_bias: Tensor | None,
    x: Tensor,
    out: Tensor,
    gates: Tensor,
    sums: Tensor,
) -> None:
    """gate_kernel, which may have no gates to keep and no sums."""
    launch(
        gate_kernel, plan, x.device,
        e_ptr=e, w_ptr=w, bias_ptr=bias, image_bias_ptr=bias if image_bias is None else image_bias,
        x_ptr=x, out_ptr=out, gates_ptr=gates, sums_ptr=sums,
    )  # fmt: skip


def backward(
    grad_y: Tensor,
    x: Tensor,
    saved: Saved,
    skips: list[Tensor],
    weights: list[Tensor],
    biases: list[Tensor],
    gains: list[Tensor],
    taps: Taps,
    dropout: Dropout,
    needs: Needs = EVERYTHING,
    image_bias: Tensor | None = None,
) -> dict[str, list[Tensor]]:
    """Gradients: "x" (one), "skips", "weights", "biases", "gains" and "image_bias" (one), those
    that are needed."""
    x, h, grad_y, *skips = map(channels_last, (x, saved.h, grad_y, *skips))
    gates = None if saved.gates is None else channels_last(saved.gates)
    weights = [dense(weight) for weight in weights]
    f, rows, packed, wide = x.shape[1], Rows.of(x, taps), saved.packed, wide_dtype(x.dtype)
    plans = backward_plan(
        Block.of(x, skips, taps, dropout), needs, gates is not None, image_bias is not None,
        tuple([strides_of(weight) for weight in three(weights)]), bool(gains),
    )  # fmt: skip
    d_gates, dh = rows.empty(x, 2 * f), rows.empty(x, f)
    out_sums, in_sums = (
        torch.empty(size, dtype=wide, device=x.device)
        for size in (plans.gate_sums, plans.hidden_sums)
    )
    e, kept = expand(
        plans.expand, x, h, skips, dropout.seed,
        d_gates=d_gates, dh=dh, gates=gates, grad_y=grad_y, sums=out_sums,
    )  # fmt: skip
    if gates is None:
        _gate(plans.gate, e, packed, biases[1], image_bias, grad_y, d_gates, d_gates, out_sums)
    launch(
        hidden_gradient_kernel, plans.hidden, x.device,
        g_ptr=d_gates, w_ptr=packed, h_ptr=h, kept_ptr=x if kept is None else kept,
        dh_ptr=dh, sums_ptr=in_sums,
    )  # fmt: skip
    grads: dict[str, list[Tensor]] = {}
    unpacked = None
    if needs.parameters:
        hidden, out = (torch.empty(size, dtype=wide, device=x.device) for size in plans.parts)
        launch(
            parameter_gradient_kernel, plans.parameters, x.device, e_ptr=e, eh_ptr=e, dh_ptr=dh,
            d_gates_ptr=d_gates, hidden_ptr=hidden, out_ptr=out,
        )  # fmt: skip
        unpacked = unpacking((hidden, out), (in_sums, out_sums), weights, gains)
        grads = {"weights": unpacked.weights, "biases": unpacked.biases, "gains": unpacked.gains}
        if image_bias is not None:
            grads["image_bias"] = [_sum_of_images(rows, d_gates, image_bias.dtype)]
    return grads | _last_gradients(plans.last, dh, packed, x, skips, grad_y, needs, unpacked)


def _sum_of_images(rows: Rows, d_gates: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the gradients of A and G: (B, 2F)."""
    # The rows of an image follow one another, with zeros where there is no pixel.
    lines = rows.batch * (rows.height + rows.above)
    of_images = rows.first(d_gates)[0, : lines * rows.pitch].view(rows.batch, -1, d_gates.shape[2])
    return of_images.sum(1, dtype=dtype)


def _last_gradients(
    plan: Plan,
    dh: Tensor,
    packed: Tensor,
    x: Tensor,
    skips: list[Tensor],
    grad_y: Tensor,
    needs: Needs,
    unpacked: Unpacking | None,
) -> dict[str, list[Tensor]]:
    """Those of x and of the skips that are wanted, and what is `unpacked`, in one launch."""
    wanted = [x] * needs.x + (skips if needs.skips else [])
    if not wanted:
        if unpacked is not None:
            unpack(plan, unpacked)
        return {}
    grads = [empty_channels_last(image, image.shape[1]) for image in wanted]
    # x's place is filled where its gradient is not wanted, and so are those of skips.
    images, results = ([x] * (not needs.x) + [*some, x, x] for some in (wanted, grads))
    launch(
        input_gradient_kernel, plan, x.device, g_ptr=dh, w_ptr=packed, nin_ptr=packed,
        x=tuple(images[:3]), dy_ptr=grad_y, dx=tuple(results[:3]),
        **(NOTHING if unpacked is None else unpacked.tensors),
    )  # fmt: skip
    named = {"x": grads[:1]} if needs.x else {}
    return named | ({"skips": grads[needs.x :]} if needs.skips and skips else {})
