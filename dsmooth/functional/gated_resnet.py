"""The gated residual block of PixelCNN++ (math.md section 1)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _extension
from ._impl import Impl, resolve_impl
from ._triton import triton_obstacle
from .shifted_conv import Shift, compute_dtype, concat_elu, padding_of, shifted_conv2d_ref

Affine = tuple[Tensor, Tensor]  # weight (D, C, kh, kw) and bias (D,)
MAX_SKIPS = 2


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
    if chosen == "native":
        obstacle = _too_many(skips) or _native_obstacle(x.device.type, dtype)
    elif chosen == "triton":
        obstacle = _too_many(skips) or triton_obstacle(x.device, dtype)
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
        x.to(dtype),
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

        return gated_resnet_triton(*args)[0]
    return _native(*args, torch.is_grad_enabled())[0]


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


def draw_seed(device: torch.device) -> Tensor:
    """A seed of dropout from torch's generator of the device: int64, no dimensions."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def _folded(conv: Affine, gain: Tensor) -> Affine:
    v, bias = conv
    norm = torch.linalg.vector_norm(v, dim=(1, 2, 3))
    return v * (gain / norm).view(-1, 1, 1, 1), bias


def dropout_factors(shape: torch.Size, dropout: float, seed: Tensor, layer: int) -> Tensor:
    """What dropout multiplies concat_elu(h) of `shape` (B, 2F, H, W) by: 0 or 1 / (1 - dropout).

    Elements are numbered in (B, H, W, 2F) order. Number i takes word i % 4 of the Philox block at
    counter (i // 4 low, i // 4 high, layer, Stage.DROPOUT), key `seed`, and is kept if that word's
    uniform is at least `dropout`. Returns float64 of that shape, on the seed's device.
    """
    from ..sampling.philox import Stage, philox4x32

    low = 0xFFFFFFFF
    batch, channels, rows, cols = shape
    count = batch * channels * rows * cols
    block = torch.arange((count + 3) // 4, device=seed.device)
    rest = torch.tensor([layer & low, int(Stage.DROPOUT)], device=seed.device)
    counter = torch.cat(
        [torch.stack([block & low, block >> 32], dim=-1), rest.expand(len(block), 2)], dim=-1
    )
    key: Any = (seed & low, seed >> 32 & low)  # tensors: reading them would wait for a GPU
    words = philox4x32(counter, key).flatten()[:count]
    kept = (words >> 9) >= keep_from(dropout)
    factors = kept.double() / (1 - dropout)
    return factors.view(batch, rows, cols, channels).permute(0, 3, 1, 2)


def keep_from(dropout: float) -> int:
    """The least n = word >> 9 whose uniform (n + 1/2) 2**-23 is at least `dropout`."""
    return math.ceil(dropout * 2**23 - 0.5)


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


# ---- the native op --------------------------------------------------------------------------


@torch.compiler.assume_constant_result
def _native_obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the extension cannot compute this; None if it can."""
    if device_type != "cpu":
        return f"it runs on cpu tensors, got {device_type}"
    if dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return f"it computes in float32, float64 and bfloat16, got {dtype}"
    return _extension.unavailable_reason()


def _too_many(skips: tuple[Tensor, ...]) -> str | None:
    if len(skips) > MAX_SKIPS:
        return f"it takes at most {MAX_SKIPS} skips, got {len(skips)}"
    return None


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _empty_channels_last(like: Tensor, channels: int) -> Tensor:
    return torch.empty(
        (like.shape[0], channels, *like.shape[2:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _dense_kernels(weights: list[Tensor]) -> list[Tensor]:
    """The weights as the extension takes them: both kernels contiguous or both channels_last."""
    if all(weights[i].is_contiguous(memory_format=torch.channels_last) for i in (0, 2)):
        return weights[:4] + [w.contiguous() for w in weights[4:]]
    return [w.contiguous() for w in weights]


def _empty_like_kernel(weight: Tensor) -> Tensor:
    contiguous = weight.is_contiguous()
    layout = torch.contiguous_format if contiguous else torch.channels_last
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=layout)


def _addresses(tensors: list[Tensor], count: int) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors] + [0] * (count - len(tensors))


def _call(
    name: str,
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
    instruction_set: str,
    tensors: list[int],
) -> None:
    batch, f, rows, cols = x.shape
    kh, kw = weights[0].shape[2:]
    left, _, top, _ = padding_of(kh, kw, shift)
    getattr(_extension.extension(), name)(
        str(x.dtype).removeprefix("torch."),
        [batch, rows, cols, f, kh, kw, top, left],
        [skip.shape[1] for skip in skips],
        not weights[0].is_contiguous(),
        0 if seed is None else seed.data_ptr(),
        layer,
        keep_from(dropout),
        1 / (1 - dropout),
        _addresses(weights, 6) + _addresses(gains, 3),
        tensors,
        torch.get_num_threads(),
        instruction_set,
    )


@torch.library.custom_op("dsmooth::gated_resnet", mutates_args=())
def _native(
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
    save: bool,
    instruction_set: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, h, gates), channels_last; the last two, (B, F, H, W) and (B, 2F, H, W), for the backward.

    weights: conv_in, its bias, conv_out, its bias and, with skips, nin_skip and its bias; gains:
    none, or those of the convolutions; float64 for float64 x, else float32. Without `save` h and
    gates have no elements.
    """
    x, skips = _channels_last(x), [_channels_last(skip) for skip in skips]
    weights = _dense_kernels(weights)
    y, h, gates = _native_outputs(x, skips, weights, gains, seed, shift, dropout, layer, save)
    tensors = [x.data_ptr(), y.data_ptr(), h.data_ptr(), gates.data_ptr()]
    tensors += [skip.data_ptr() for skip in skips]
    settings = (shift, dropout, layer, instruction_set)
    _call("gated_block_forward", x, skips, weights, gains, seed, *settings, tensors)
    return y, h, gates


@_native.register_fake
def _native_outputs(
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
    save: bool,
    instruction_set: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    f = x.shape[1]
    y = _empty_channels_last(x, f)
    if not save:
        return y, x.new_empty(0), x.new_empty(0)
    return y, _empty_channels_last(x, f), _empty_channels_last(x, 2 * f)


@torch.library.custom_op("dsmooth::gated_resnet_backward", mutates_args=())
def _native_backward(
    grad_y: Tensor,
    x: Tensor,
    h: Tensor,
    gates: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
    instruction_set: str,
) -> list[Tensor]:
    """Gradients of x, the first five weights (nin_skip's bias has conv_in's), gains and skips."""
    grad_y, x = _channels_last(grad_y), _channels_last(x)
    skips = [_channels_last(skip) for skip in skips]
    weights = _dense_kernels(weights)
    settings = (shift, dropout, layer, instruction_set)
    grads = _native_gradients(grad_y, x, h, gates, skips, weights, gains, seed, *settings)
    first_gain = 1 + min(len(weights), 5)
    first_skip = first_gain + len(gains)
    tensors = _addresses([grad_y, x, h, gates], 4) + _addresses(grads[:first_gain], 6)
    tensors += _addresses(grads[first_gain:first_skip], 3)
    for skip, grad in zip(skips, grads[first_skip:], strict=True):
        tensors += [skip.data_ptr(), grad.data_ptr()]
    _call("gated_block_backward", x, skips, weights, gains, seed, *settings, tensors)
    return grads


@_native_backward.register_fake
def _native_gradients(
    grad_y: Tensor,
    x: Tensor,
    h: Tensor,
    gates: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    shift: str,
    dropout: float,
    layer: int,
    instruction_set: str,
) -> list[Tensor]:
    return [
        _empty_channels_last(x, x.shape[1]),
        *(_empty_like_kernel(w) for w in _dense_kernels(weights)[:5]),
        *(gain.new_empty(gain.shape) for gain in gains),
        *(_empty_channels_last(skip, skip.shape[1]) for skip in skips),
    ]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, skips, weights, gains, seed, shift, dropout, layer, _, instruction_set = inputs
    ctx.settings = (shift, dropout, layer, instruction_set)
    _, h, gates = output
    ctx.mark_non_differentiable(h, gates)
    ctx.set_materialize_grads(False)
    ctx.counts = [len(skips), len(weights), len(gains)]
    ctx.save_for_backward(x, h, gates, *skips, *weights, *gains, seed)


def _backward(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    n_skips, n_weights, n_gains = ctx.counts
    rest: tuple[None, ...] = (None,) * 6
    if grad_y is None:
        return None, [None] * n_skips, [None] * n_weights, [None] * n_gains, *rest
    x, h, gates, *lists, seed = ctx.saved_tensors
    skips, lists = lists[:n_skips], lists[n_skips:]
    weights, gains = lists[:n_weights], lists[n_weights:]
    grad_x, *grads = _native_backward(
        grad_y, x, h, gates, skips, weights, gains, seed, *ctx.settings
    )
    first_gain = min(n_weights, 5)
    first_skip = first_gain + n_gains
    grad_weights = grads[:first_gain]
    if n_weights == 6:
        grad_weights.append(grad_weights[1].clone())
    return grad_x, grads[first_skip:], grad_weights, grads[first_gain:first_skip], *rest


def _refuse_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "the native gated block cannot be differentiated twice; use impl='reference' "
        "or a use_impl('reference') block"
    )


_native.register_autograd(_backward, setup_context=_save_for_backward)
_native_backward.register_autograd(_refuse_second_derivative)
