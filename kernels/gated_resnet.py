"""The gated resnet: matmuls of rows (`matmul.py`) and their epilogues.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

with E = concat_elu and dropout D; (A, G) plus a bias of each image, if there is one. `expand`
writes E(x), hidden_kernel ends in D E(h) too. Backward, E is written again, and each data gradient
ends with the slopes of elu. Saved for it are h, the packed weights and, if they are to be kept, A
and G; else gate_kernel with GRAD computes them anew.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .expand import expand
from .gated_resnet_kernels import (
    gate_kernel,
    hidden_gradient_kernel,
    hidden_kernel,
    input_gradient_kernel,
    parameter_gradient_kernel,
)
from .gated_resnet_plans import BlockShape, Needs, backward_plan, forward_plan
from .geometry import Dropout, Operands, Rows, Taps, channels_last, empty_channels_last
from .launch import Plan, launch, wide_dtype
from .weight_gradients import NOTHING, Unpacking, unpack_kernel, unpacking
from .weights import dense, pack, pad_to_three, strides_of


class Saved(NamedTuple):
    """Results of the forward that the backward reads: h (B, F, H, W), the packed weights, and A and
    G as (B, 2F, H, W) if they are kept; images are channels_last."""

    h: Tensor
    packed: Tensor
    gates: Tensor | None


EVERYTHING = Needs()


def forward(
    given: Operands, taps: Taps, dropout: Dropout, save: bool = True, keep: bool = False
) -> tuple[Tensor, Saved]:
    """y (B, F, H, W) channels_last, and the results that the backward needs.

    Without `save`, the packed weights lack the adjoints; keep: whether A and G are saved.
    """
    given = _readable(given)
    x, f = given.x, given.x.shape[1]
    plans = forward_plan(BlockShape.of(given, taps, dropout), keep)
    packed = pack(given, adjoint=save)
    h, y = (empty_channels_last(x, f) for _ in range(2))
    gates = empty_channels_last(x, 2 * f) if keep else None
    e, kept = expand(plans.expand, given, x)
    nin_bias = given.bias_in if given.bias_nin is None else given.bias_nin
    launch(
        hidden_kernel, plans.hidden, x.device,
        e_ptr=e, w_ptr=packed, bias_ptr=given.bias_in, nin_bias_ptr=nin_bias, h_ptr=h,
        kept_ptr=x if kept is None else kept, eh_ptr=e,
    )  # fmt: skip
    _gate(plans.gate, e, packed, given, x, y, y if gates is None else gates, y)
    return y, Saved(h, packed, gates)


def _readable(given: Operands) -> Operands:
    """The operands in memory orders that the kernels read: images channels_last, weights dense,
    vectors contiguous."""
    orders = [channels_last] * 3 + [dense] * (len(given) - 3)
    return Operands._make(
        None if tensor is None else order(tensor)
        for order, tensor in zip(orders, given, strict=True)
    )


def _gate(
    plan: Plan,
    e: Tensor,
    w: Tensor,
    given: Operands,
    x: Tensor,
    out: Tensor,
    gates: Tensor,
    sums: Tensor,
) -> None:
    """gate_kernel, which may have no gates to keep and no sums."""
    bias = given.bias_out
    launch(
        gate_kernel, plan, x.device, e_ptr=e, w_ptr=w, bias_ptr=bias,
        image_bias_ptr=bias if given.image_bias is None else given.image_bias,
        x_ptr=x, out_ptr=out, gates_ptr=gates, sums_ptr=sums,
    )  # fmt: skip


def backward(
    grad_y: Tensor,
    saved: Saved,
    given: Operands,
    taps: Taps,
    dropout: Dropout,
    needs: Needs = EVERYTHING,
) -> dict[str, Tensor]:
    """The gradients that are needed, by the names of the operands."""
    given = _readable(given)
    x, h, grad_y = given.x, channels_last(saved.h), channels_last(grad_y)
    gates = None if saved.gates is None else channels_last(saved.gates)
    f, packed, wide = x.shape[1], saved.packed, wide_dtype(x.dtype)
    plans = backward_plan(
        BlockShape.of(given, taps, dropout), needs, gates is not None,
        tuple([strides_of(weight) for weight in pad_to_three(given.weights)]),
        given.gain_in is not None,
    )  # fmt: skip
    d_gates, dh = plans.rows.empty(x, 2 * f), plans.rows.empty(x, f)
    out_sums, in_sums = (
        torch.empty(size, dtype=wide, device=x.device)
        for size in (plans.gate_sums, plans.hidden_sums)
    )
    e, kept = expand(
        plans.expand, given, h,
        d_gates=d_gates, dh=dh, gates=gates, grad_y=grad_y, sums=out_sums,
    )  # fmt: skip
    if gates is None:
        _gate(plans.gate, e, packed, given, grad_y, d_gates, d_gates, out_sums)
    launch(
        hidden_gradient_kernel, plans.hidden, x.device,
        g_ptr=d_gates, w_ptr=packed, h_ptr=h, kept_ptr=x if kept is None else kept,
        dh_ptr=dh, sums_ptr=in_sums,
    )  # fmt: skip
    grads: dict[str, Tensor] = {}
    unpacked = None
    if needs.parameters:
        hidden, out = (torch.empty(size, dtype=wide, device=x.device) for size in plans.parts)
        launch(
            parameter_gradient_kernel, plans.parameters, x.device, e_ptr=e, eh_ptr=e, dh_ptr=dh,
            d_gates_ptr=d_gates, hidden_ptr=hidden, out_ptr=out,
        )  # fmt: skip
        unpacked = unpacking((hidden, out), (in_sums, out_sums), given)
        grads |= unpacked.grads
        if given.image_bias is not None:
            grads["image_bias"] = _sum_of_images(plans.rows, d_gates, given.image_bias.dtype)
    return grads | _last_gradients(plans.last, dh, packed, given, grad_y, needs, unpacked)


def _sum_of_images(rows: Rows, d_gates: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the gradients of A and G over each image: (B, 2F)."""
    # The rows of an image follow one another, with zeros where there is no pixel.
    lines = rows.batch * (rows.height + rows.above)
    of_images = rows.first(d_gates)[0, : lines * rows.pitch].view(rows.batch, -1, d_gates.shape[2])
    return of_images.sum(1, dtype=dtype)


def _last_gradients(
    plan: Plan,
    dh: Tensor,
    packed: Tensor,
    given: Operands,
    grad_y: Tensor,
    needs: Needs,
    unpacked: Unpacking | None,
) -> dict[str, Tensor]:
    """The wanted gradients of x and the skips, in one launch with `unpacked`."""
    x = given.x
    wanted = {"x": x} if needs.x else {}
    if needs.skips:
        wanted |= dict(zip(("skip", "skip_2"), given.skips, strict=False))
    if not wanted:
        if unpacked is not None:
            launch(unpack_kernel, plan, x.device, **unpacked.tensors)
        return {}
    grads = {name: empty_channels_last(t, t.shape[1]) for name, t in wanted.items()}
    # x's place is filled where its gradient is not wanted, and so are those of skips.
    images, results = (
        tuple([x] * (not needs.x) + [*some.values(), x, x])[:3] for some in (wanted, grads)
    )
    launch(
        input_gradient_kernel, plan, x.device, g_ptr=dh, w_ptr=packed, nin_ptr=packed,
        x=images, dy_ptr=grad_y, dx=results,
        **(NOTHING if unpacked is None else unpacked.tensors),
    )  # fmt: skip
    return grads
