"""The gated resnet of PixelCNN++ (docs/math.md, section 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import Impl, autocast_dtype, choose, native_obstacle, resolve_impl, triton_obstacle
from .dropout import draw_seed, dropout_factors
from .gated_resnet_native import MAX_TAPS, gated_resnet_native
from .gated_resnet_operands import MAX_SKIPS, WEIGHTS, Operands, Settings, check_operands
from .shifted_conv import Shift, concat_elu, shifted_conv2d_ref

Affine = tuple[Tensor, Tensor]  # weight (D, C, kh, kw) and bias (D,)


def gated_resnet(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skip: Tensor | tuple[Tensor, ...] | None = None,
    nin_skip: Affine | None = None,
    *,
    gains: tuple[Tensor, ...] = (),
    image_bias: Tensor | None = None,
    shift: Shift,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    layer: int = 0,
    first_image: int = 0,
    keep_gates: bool = False,
    impl: Impl = "auto",
) -> Tensor:
    """x + A * sigmoid(G), where (A, G) come from two convolutions with concat_elu before each.

        h = conv_in(concat_elu(x)) [+ nin_skip(concat_elu(skip))]
        (A, G) = split(conv_out(dropout(concat_elu(h))) [+ image_bias])

    x: (B, F, H, W). conv_in: weight (F, 2F, kh, kw), bias (F,). conv_out: weight (2F, 2F, kh, kw),
    bias (2F,). skip: (B, S, H, W), or a tuple of such tensors that stands for their concatenation
    (two at most but for the reference), with nin_skip: weight (F, 2S, 1, 1), bias (F,); both or
    neither. gains: none, or g (D,) of each of these convolutions, whose weights are then v of a
    weight norm w = g v / |v| per output filter. image_bias: (B, 2F), added at every pixel of its
    image: how a vector that belongs to an image enters the block. dropout: the probability of an
    element of concat_elu(h) to be zeroed, a function of `seed` (int64, no dimensions; by default
    drawn from torch's generator), `layer` and the element's place alone: the same in every
    implementation (see `dropout_factors`). first_image: where x begins in a larger batch whose
    dropout it shares. With probability 0 nothing is drawn. keep_gates: whether "triton" keeps A and
    G for the backward, two more images of x's size and dtype, rather than to compute them again;
    "native" always does. Returns (B, F, H, W), in the autocast dtype under autocast.

    impl: "native" is the C++ extension on the CPU, for float32, float64 and bfloat16; "triton" the
    Triton kernels on CUDA, for float32, bfloat16 and float16; "cudnn" torch's own convolutions
    between such kernels; "reference" plain PyTorch (which alone can be differentiated twice);
    "auto" the one of the first two that can run, else the last. The first three return
    channels_last, and copy an x or skip that is not channels_last.

    Without autocast all tensors but the seed have x's dtype; all are on its device. Raises
    ValueError for a shape, dtype, device or shift that does not fit, and RuntimeError, with the
    reason, for an explicit impl that cannot run. Errors call the biases bias_in, bias_out and
    bias_nin, the gains gain_in, gain_out and gain_nin.
    Source: Salimans et al., PixelCNN++ (2017).
    """
    skips = _parts_of(skip)
    weights = _by_name(conv_in, conv_out, nin_skip, gains, image_bias)
    settings = Settings(shift, dropout, layer, first_image)
    check_operands(x, skips, weights, seed, settings)
    autocast = autocast_dtype(x)
    dtype = autocast or x.dtype
    facts = x, dtype, skips, conv_in[0]
    asked = resolve_impl(impl)
    chosen = choose("gated_resnet", asked, x.device, lambda chosen: _obstacle(chosen, *facts))
    settings = Settings(shift, float(dropout), layer, first_image)
    if chosen == "reference":
        return _reference(x, skips, weights, settings, seed)
    if dropout > 0 and seed is None:
        seed = draw_seed(x.device)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    if autocast is not None or dtype != exact:
        x, skips = _cast(x, dtype), tuple([_cast(skip, dtype) for skip in skips])
        weights = {name: _cast(weight, exact) for name, weight in weights.items()}
    skip_1, skip_2 = (*skips, None, None)[:MAX_SKIPS]
    seed = seed if dropout > 0 else None
    given = Operands(x=x, skip=skip_1, skip_2=skip_2, **weights, seed=seed)
    if chosen == "cudnn":
        from .gated_resnet_cudnn import gated_resnet_cudnn

        return gated_resnet_cudnn(given, settings)
    if chosen == "triton":
        from .gated_resnet_triton import gated_resnet_triton

        return gated_resnet_triton(given, settings, keep_gates)
    return gated_resnet_native(given, settings)


def _parts_of(skip: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    return () if skip is None else skip if isinstance(skip, tuple) else (skip,)


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    """tensor.to(dtype), which takes a microsecond to do nothing; None for None."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def gated_resnet_ref(
    x: Tensor,
    conv_in: Affine,
    conv_out: Affine,
    skip: Tensor | tuple[Tensor, ...] | None = None,
    nin_skip: Affine | None = None,
    *,
    gains: tuple[Tensor, ...] = (),
    image_bias: Tensor | None = None,
    shift: Shift,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    layer: int = 0,
    first_image: int = 0,
) -> Tensor:
    """The reference of `gated_resnet`, line for line the equation. Raises as that does."""
    skips = _parts_of(skip)
    weights = _by_name(conv_in, conv_out, nin_skip, gains, image_bias)
    settings = Settings(shift, dropout, layer, first_image)
    check_operands(x, skips, weights, seed, settings)
    return _reference(x, skips, weights, settings, seed)


def _reference(
    x: Tensor,
    skips: tuple[Tensor, ...],
    given: dict[str, Any],
    settings: Settings,
    seed: Tensor | None,
) -> Tensor:
    shift, dropout, layer, first_image = settings
    conv_in = _folded(given["conv_in"], given["gain_in"])
    conv_out = _folded(given["conv_out"], given["gain_out"])
    nin_skip = _folded(given["nin_skip"], given["gain_nin"])
    h = shifted_conv2d_ref(concat_elu(x), conv_in, given["bias_in"], shift=shift)
    if skips:
        a = torch.cat(skips, dim=1) if len(skips) > 1 else skips[0]
        h = h + F.conv2d(concat_elu(a), nin_skip, given["bias_nin"])
    h = concat_elu(h)
    if dropout > 0:
        seed = draw_seed(x.device) if seed is None else seed
        factors = dropout_factors(h.shape, dropout, seed, layer, first_image).to(h.dtype)
        h = torch.where(factors > 0, h * factors, 0)
    gates = shifted_conv2d_ref(h, conv_out, given["bias_out"], shift=shift)
    if given["image_bias"] is not None:
        gates = gates + given["image_bias"][:, :, None, None].to(gates.dtype)
    a, g = torch.chunk(gates, 2, dim=1)
    return x + a * torch.sigmoid(g)


def _folded(v: Any, gain: Tensor | None) -> Any:
    """The weight of a weight norm, or v itself without a gain."""
    if gain is None:
        return v
    norm = torch.linalg.vector_norm(v, dim=(1, 2, 3))
    return v * (gain / norm).view(-1, 1, 1, 1)


def _by_name(
    conv_in: Affine,
    conv_out: Affine,
    nin_skip: Affine | None,
    gains: tuple[Any, ...],
    image_bias: Tensor | None,
) -> dict[str, Any]:
    """Weights, biases and gains by the names of the field table."""
    count = 2 if nin_skip is None else 3
    if len(gains) not in (0, count):
        raise ValueError(f"gains must be none, or {count} for as many weights, got {len(gains)}")
    (weight_in, bias_in), (weight_out, bias_out) = conv_in, conv_out
    nin = (None, None) if nin_skip is None else nin_skip
    gains = (*gains, None, None, None)[:3]
    values = (weight_in, bias_in, weight_out, bias_out, *nin, *gains, image_bias)
    return dict(zip(WEIGHTS, values, strict=True))


def _obstacle(
    impl: Impl, x: Tensor, dtype: torch.dtype, skips: tuple[Tensor, ...], kernel: Tensor
) -> str | None:
    """Why an implementation other than the reference cannot compute this; None if it can."""
    if len(skips) > MAX_SKIPS:
        return f"it takes at most {MAX_SKIPS} skips, got {len(skips)}"
    if impl in ("triton", "cudnn"):
        return triton_obstacle(x.device, dtype)
    taps = kernel.shape[2] * kernel.shape[3]
    if taps > MAX_TAPS:
        return f"it takes kernels of at most {MAX_TAPS} taps, got {taps}"
    return native_obstacle(x.device.type, dtype)
