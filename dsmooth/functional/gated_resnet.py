"""The gated resnet of PixelCNN++ (docs/math.md, section 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import Stream, draw_seed, philox4x32, seed_words
from .dispatch import Impl, choose, resolve_impl
from .gated_resnet_op import BACKENDS, forward_op
from .gated_resnet_operands import Affine, GatedResnetCall, Operands, check_operands, operands_of
from .shifted_conv import Shift, concat_elu_inner, fold_weight_norm, shifted_conv2d_inner


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
    impl: Impl = "auto",
) -> Tensor:
    """x + A * sigmoid(G), where (A, G) come from two convolutions with concat_elu before each.

        h = conv_in(concat_elu(x)) [+ nin_skip(concat_elu(skip))]
        (A, G) = split(conv_out(dropout(concat_elu(h))) [+ image_bias])

    x: (B, F, H, W). conv_in: weight (F, 2F, kh, kw), bias (F,). conv_out: weight (2F, 2F, kh, kw),
    bias (2F,). skip: (B, S, H, W), or a tuple of two tensors to concatenate along channels.
    nin_skip: weight (F, 2S, 1, 1), bias (F,), required if there is a skip. gains: empty, or the
    gain g (D,) of each of these convolutions; their weights are then the v of weight norm, w = g v
    / |v| per output filter. image_bias: (B, 2F), added at every pixel of its image. dropout:
    probability of zeroing an element of concat_elu(h). Its mask is a function of `seed` (int64
    scalar; by default drawn from torch's generator), `layer` (32 bits) and the element's index, the
    same in every implementation (see `dropout_factors`). With probability 0 no seed is drawn.
    first_image: index of x's first image in a larger batch whose dropout mask it shares. Returns
    (B, F, H, W), in the autocast dtype under autocast.

    impl: "native" is the C++ extension on the CPU, for float32, float64 and bfloat16; "triton" the
    Triton kernels on CUDA, for float32, bfloat16 and float16; "reference" plain PyTorch, the only
    one that can be differentiated twice; "auto" is "native" or "triton" if it can run, else
    "reference". The first two return channels_last, and copy an x or skip that is not
    channels_last.

    Without autocast all tensors except the seed have x's dtype; all are on x's device. Raises
    ValueError for a shape, dtype, device or shift that does not fit, TypeError for an integer x,
    and RuntimeError, with the reason, for an explicit impl that cannot run. In errors the biases
    are bias_in, bias_out and bias_nin, the gains gain_in, gain_out and gain_nin. Source: Salimans
    et al., PixelCNN++ (2017).
    """
    skips = () if skip is None else skip if isinstance(skip, tuple) else (skip,)
    if len(skips) > 2:
        raise ValueError(f"skip must be one or two tensors, got {len(skips)}")
    count = 2 if nin_skip is None else 3
    if len(gains) not in (0, count):
        raise ValueError(
            f"gains must be empty or {count} tensors, one per weight, got {len(gains)}"
        )
    operands = operands_of(x, conv_in, conv_out, skips, nin_skip, gains, image_bias, seed)
    call = GatedResnetCall(shift, dropout, layer, first_image, resolve_impl(impl))
    check_operands(operands, call)
    if dropout == 0:
        operands, call = operands._replace(seed=None), GatedResnetCall(shift, impl=call.impl)
    elif seed is None:
        operands = operands._replace(seed=draw_seed(x.device))
    return gated_resnet_inner(operands, call._replace(dropout=float(dropout)))


def gated_resnet_inner(operands: Operands, call: GatedResnetCall) -> Tensor:
    """`gated_resnet` of its operands; with a seed only if there is dropout."""
    device = operands.x.device
    impl = choose("gated_resnet", call.impl, device, lambda i: BACKENDS[i].obstacle(operands))
    if impl == "reference":
        return _reference(operands, call)
    cast = BACKENDS[impl].cast(operands)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in cast)
    return forward_op(*cast, *call._replace(impl=impl, save=save))[0]


def _reference(operands: Operands, call: GatedResnetCall) -> Tensor:
    """The equation of `gated_resnet`, line for line."""
    x, skip, skip_2, v_in, bias_in, v_out, bias_out, v_nin, bias_nin, *_ = operands
    conv_in = fold_weight_norm(v_in, operands.gain_in)
    h = shifted_conv2d_inner(concat_elu_inner(x), conv_in, bias_in, call.shift)
    if skip is not None and v_nin is not None:
        a = skip if skip_2 is None else torch.cat([skip, skip_2], dim=1)
        h = h + F.conv2d(concat_elu_inner(a), fold_weight_norm(v_nin, operands.gain_nin), bias_nin)
    h = concat_elu_inner(h)
    if operands.seed is not None:
        h = drop(h, call, operands.seed)
    conv_out = fold_weight_norm(v_out, operands.gain_out)
    gates = shifted_conv2d_inner(h, conv_out, bias_out, call.shift)
    return apply_gates(x, gates, operands.image_bias)


def apply_gates(x: Tensor, gates: Tensor, image_bias: Tensor | None) -> Tensor:
    """x + A sigmoid(G) for gates (B, 2F, H, W), to which image_bias (B, 2F) is added."""
    if image_bias is not None:
        gates = gates + image_bias[:, :, None, None].to(gates.dtype)
    a, g = torch.chunk(gates, 2, dim=1)
    return x.to(a.dtype) + a * torch.sigmoid(g)


def drop(h: Tensor, call: GatedResnetCall, seed: Tensor) -> Tensor:
    """Dropout of concat_elu(h)."""
    factors = dropout_factors(h.shape, call, seed).to(h.dtype)
    return torch.where(factors > 0, h * factors, 0)


def dropout_factors(shape: torch.Size, call: GatedResnetCall, seed: Tensor) -> Tensor:
    """The dropout factors of concat_elu(h) of `shape` (B, 2F, H, W): 0 or 1 / (1 - dropout).

    Element i, in (B, H, W, 2F) order of the larger batch, uses word i % 4 of the Philox call at
    counter (i // 4 low, i // 4 high, layer, Stream.DROPOUT), key `seed`. It is kept if that word's
    uniform is at least `dropout`. Returns float64 of that shape, on the seed's device.
    """
    batch, channels, rows, cols = shape
    count = batch * channels * rows * cols
    first = call.first_image * (count // max(batch, 1))
    group = torch.arange(first // 4, (first + count + 3) // 4, device=seed.device)
    rest = [torch.full_like(group, word) for word in (call.layer, int(Stream.DROPOUT))]
    counter = torch.stack([group, group >> 32, *rest], dim=-1)
    words = philox4x32(counter, seed_words(seed)).flatten()[first % 4 :][:count]
    kept = (words >> 9) >= call.keep_from
    factors = kept.double() * call.scale
    return factors.view(batch, rows, cols, channels).permute(0, 3, 1, 2)
