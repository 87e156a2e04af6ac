"""The gated residual block of PixelCNN++ (math.md section 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Impl, compute_dtype, resolve_impl, triton_obstacle
from .dropout import draw_seed, dropout_factors
from .gated_resnet_native import MAX_SKIPS, gated_resnet_native, native_obstacle, operands
from .shifted_conv import concat_elu, shifted_conv2d_ref
from .taps import Shift

Affine = tuple[Tensor, Tensor]  # weight (D, C, kh, kw) and bias (D,)


def gated_resnet(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skip: Tensor | tuple[Tensor, ...] | None = None,
    nin_skip: Affine | None = None,
    *,
    gains: tuple[Tensor, ...] = (),
    shift: Shift,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    layer: int = 0,
    impl: Impl = "auto",
) -> Tensor:
    """x + A * sigmoid(G), where (A, G) come from two convolutions with concat_elu before each.

        h = conv_in(concat_elu(x)) [+ nin_skip(concat_elu(skip))]
        (A, G) = split(conv_out(dropout(concat_elu(h))))

    x: (B, F, H, W). conv_in: weight (F, 2F, kh, kw), bias (F,). conv_out: weight (2F, 2F, kh, kw),
    bias (2F,). skip: (B, S, H, W), or a tuple of such tensors that stands for their concatenation
    (two at most but for the reference), with nin_skip: weight (F, 2S, 1, 1), bias (F,); both or
    neither. gains: none, or g (D,) of each of these convolutions, whose weights are then v of a
    weight norm w = g v / |v| per output filter. dropout: the probability of an element of
    concat_elu(h) to be zeroed, a function of `seed` (int64, no dimensions; by default drawn from
    torch's generator), `layer` and the
    element's place alone: the same in every implementation (see `dropout_factors`). With
    probability 0 nothing is drawn. Returns (B, F, H, W), in the autocast dtype under autocast.

    impl: "native" is the C++ extension on the CPU, for float32, float64 and bfloat16; "triton" the
    Triton kernels on CUDA, for float32, bfloat16 and float16; "reference" plain PyTorch (which
    alone can be differentiated twice); "auto" the one of the first two that can run, else the last.
    Both return channels_last; the native op copies an x or skip that is not channels_last.

    Raises ValueError for shapes that do not fit, and RuntimeError, with the reason, for an explicit
    impl that cannot run.
    Source: Salimans et al., PixelCNN++ (2017).
    """
    skips = () if skip is None else skip if isinstance(skip, tuple) else (skip,)
    _check(x, conv_in, conv_out, skips, nin_skip, gains, dropout)
    if dropout > 0 and seed is None:
        seed = draw_seed(x.device)
    chosen = resolve_impl(impl)
    if chosen == "auto":
        chosen = "triton" if x.device.type == "cuda" else "native"
    dtype = compute_dtype(x)
    obstacle = None
    if chosen != "reference" and len(skips) > MAX_SKIPS:
        obstacle = f"it takes at most {MAX_SKIPS} skips, got {len(skips)}"
    elif chosen == "native":
        obstacle = native_obstacle(x.device.type, dtype)
    elif chosen == "triton":
        obstacle = triton_obstacle(x.device, dtype)
    if obstacle is not None and resolve_impl(impl) != "auto":
        raise RuntimeError(f"gated_resnet cannot run with impl={chosen!r}: {obstacle}")
    if chosen == "reference" or obstacle is not None:
        return gated_resnet_ref(
            x, conv_in, conv_out, skip, nin_skip, gains=gains,
            shift=shift, dropout=dropout, seed=seed, layer=layer,
        )  # fmt: skip
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [tensor.to(exact) for tensor in (*conv_in, *conv_out, *(nin_skip or ()))]
    args = (
        [tensor.to(dtype) for tensor in skips],
        weights,
        [gain.to(exact) for gain in gains],
        seed if dropout > 0 else None,
        shift,
        float(dropout),
        layer,
    )
    if chosen == "triton":
        from .gated_resnet_triton import gated_resnet_triton

        return gated_resnet_triton(x.to(dtype), *args)[0]
    return gated_resnet_native(x.to(dtype), operands(*args), torch.is_grad_enabled())[0]


def gated_resnet_ref(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skip: Tensor | tuple[Tensor, ...] | None = None,
    nin_skip: Affine | None = None,
    *,
    gains: tuple[Tensor, ...] = (),
    shift: Shift,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """The reference of `gated_resnet`, line for line the equation."""
    if gains:
        conv_in, conv_out = _folded(conv_in, gains[0]), _folded(conv_out, gains[1])
        nin_skip = nin_skip and _folded(nin_skip, gains[2])
    h = shifted_conv2d_ref(concat_elu(x), *conv_in, shift=shift)
    if skip is not None and nin_skip is not None:
        a = torch.cat(skip, dim=1) if isinstance(skip, tuple) else skip
        h = h + F.conv2d(concat_elu(a), *nin_skip)
    h = concat_elu(h)
    if dropout > 0 and seed is not None:
        factors = dropout_factors(h.shape, dropout, seed, layer).to(h.dtype)
        h = torch.where(factors > 0, h * factors, 0)
    a, g = torch.chunk(shifted_conv2d_ref(h, *conv_out, shift=shift), 2, dim=1)
    return x + a * torch.sigmoid(g)


def _folded(conv: Affine, gain: Tensor) -> Affine:
    v, bias = conv
    norm = torch.linalg.vector_norm(v, dim=(1, 2, 3))
    return v * (gain / norm).view(-1, 1, 1, 1), bias


def _check(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skips: tuple[Tensor, ...],
    nin_skip: Affine | None,
    gains: tuple[Tensor, ...],
    dropout: float,
) -> None:
    f = conv_in[0].shape[0]
    if x.ndim != 4 or x.shape[1] != f or conv_in[0].shape[1] != 2 * f:
        raise ValueError(
            f"x must have shape (B, {f}, H, W) and conv_in twice that many inputs, "
            f"got x {tuple(x.shape)} and conv_in {tuple(conv_in[0].shape)}"
        )
    expected = (2 * f, 2 * f, *conv_in[0].shape[2:])
    if tuple(conv_out[0].shape) != expected:
        raise ValueError(f"conv_out must have shape {expected}, got {tuple(conv_out[0].shape)}")
    if (len(skips) == 0) != (nin_skip is None):
        raise ValueError("skip and nin_skip must be given together")
    for skip in skips:
        if skip.ndim != 4 or (skip.shape[0], *skip.shape[2:]) != (x.shape[0], *x.shape[2:]):
            raise ValueError(
                f"skip must have x's batch, height and width, got {tuple(skip.shape)} "
                f"beside {tuple(x.shape)}"
            )
    if nin_skip is not None:
        expected = (f, 2 * sum(skip.shape[1] for skip in skips), 1, 1)
        if tuple(nin_skip[0].shape) != expected:
            raise ValueError(f"nin_skip must have shape {expected}, got {tuple(nin_skip[0].shape)}")
    shapes = [(f,), (2 * f,), (f,)][: 2 if nin_skip is None else 3]
    if gains and [tuple(gain.shape) for gain in gains] != shapes:
        raise ValueError(
            f"gains must have shapes {shapes}, got {[tuple(gain.shape) for gain in gains]}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
