"""The kernels around torch's convolutions, for the gated resnet of impl="cudnn".

Images are channels_last, and padded while they are expanded: a convolution adds no padding.
"""

import triton
import triton.language as tl
from torch import Tensor

from .elementwise import draw_kept, drop, elu_pair, elu_slopes, gate_gradients, widen
from .expand import pixels_of_rows
from .geometry import MAX_PIXELS, Settings, Taps, cdiv, empty_channels_last
from .launch import launch, prepare

BLOCK = 32  # pixels, and channels, of a program


@triton.jit
def pad_concat_elu_kernel(
    v_ptr, e_ptr, dv_ptr, seed_ptr, layer, keep_from, first_pixel, total, first, size,
    C: tl.constexpr, ABOVE: tl.constexpr, BEFORE: tl.constexpr, DROPOUT: tl.constexpr,
    SCALE: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """e = D concat_elu(v), padded, 2C channels; or with GRAD dv from the gradient e of that.

    Row s of e is row s + first of the padded images. All padding lies above and before an image.
    """
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    base, offset, is_pixel = pixels_of_rows(
        tl.program_id(0) * BLOCK + first, size, ABOVE, BEFORE, BLOCK
    )
    first_f = tl.program_id(1) * BLOCK
    offs_f = first_f + tl.arange(0, BLOCK)
    mask_f = (offs_f < C)[None, :]
    mask = (is_pixel & (s < total))[:, None] & mask_f
    offs = (base + offset)[:, None] * C + offs_f[None, :]
    e_ptrs = e_ptr + s.to(tl.int64)[:, None] * (2 * C) + offs_f[None, :]
    v = tl.load(v_ptr + offs, mask=mask, other=0.0)
    if GRAD:
        positive = widen(tl.load(e_ptrs, mask=mask, other=0.0))
        negative = widen(tl.load(e_ptrs + C, mask=mask, other=0.0))
    else:
        positive, negative = elu_pair(v)
    if DROPOUT:
        pixel = first_pixel + base + offset
        kept = draw_kept(seed_ptr, layer, keep_from, pixel, first_f, F=C, BLOCK_F=BLOCK)
        positive, negative = drop(positive, negative, kept, SCALE)
    if GRAD:
        slope, slope_negative = elu_slopes(v)
        dv = slope * positive - slope_negative * negative
        tl.store(dv_ptr + offs, dv.to(v.dtype), mask=mask)
    else:
        tl.store(e_ptrs, positive.to(v.dtype), mask=(s < total)[:, None] & mask_f)
        tl.store(e_ptrs + C, negative.to(v.dtype), mask=(s < total)[:, None] & mask_f)


@triton.jit
def gate_epilogue_kernel(
    x_ptr, gates_ptr, out_ptr, n, F: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr
):
    """y (n, F) = x + A sigmoid(G), or with GRAD the gradients of (A, G) (n, 2F) from x = dy."""
    p = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    offs_f = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (p < n) & (offs_f < F)
    offs, gates = p * F + offs_f, p * (2 * F) + offs_f
    x = widen(tl.load(x_ptr + offs, mask=mask, other=0.0))
    a = widen(tl.load(gates_ptr + gates, mask=mask, other=0.0))
    g = widen(tl.load(gates_ptr + gates + F, mask=mask, other=0.0))
    if GRAD:
        da, dg = gate_gradients(x, a, g, mask)
        tl.store(out_ptr + gates, da.to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(out_ptr + gates + F, dg.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(out_ptr + offs, (x + a / (1 + tl.exp(-g))).to(out_ptr.dtype.element_ty), mask=mask)


def pad_concat_elu(
    v: Tensor, taps: Taps, settings: Settings, seed: Tensor | None, grad: Tensor | None = None
) -> Tensor:
    """D concat_elu(v) (B, 2C, H + kh - 1, W + kw - 1), or the gradient of v from that result's.

    Without a seed there is no dropout."""
    batch, channels, height, width = v.shape
    above, before = taps.kh - 1, taps.kw - 1
    size = height + above, width + before
    e = empty_channels_last(v, 2 * channels, size) if grad is None else grad
    out = e if grad is None else empty_channels_last(v, channels)
    total = e[:, 0].numel()
    if total > MAX_PIXELS:
        raise ValueError(f"an image tensor must have at most {MAX_PIXELS} pixels, got {total}")
    prepared = prepare(
        (cdiv(total, BLOCK), cdiv(channels, BLOCK)), total=total, size=(batch, height, width),
        first=(above - taps.top) * (width + before) + before - taps.left,
        layer=settings.layer, keep_from=settings.keep_from, C=channels, ABOVE=above, BEFORE=before,
        first_pixel=settings.first_image * height * width, DROPOUT=seed is not None,
        SCALE=settings.scale, GRAD=grad is not None, BLOCK=BLOCK,
    )  # fmt: skip
    seed = v if seed is None else seed  # v stands in for it
    launch(pad_concat_elu_kernel, prepared, v.device, v_ptr=v, e_ptr=e, dv_ptr=out, seed_ptr=seed)
    return out


def gate_epilogue(x: Tensor, gates: Tensor, grad: bool = False) -> Tensor:
    """x + A sigmoid(G), or from x = dy the gradients of (A, G)."""
    filters, n = x.shape[1], x.numel() // x.shape[1]
    out = empty_channels_last(x, 2 * filters if grad else filters)
    grid = cdiv(n, BLOCK), cdiv(filters, BLOCK)
    prepared = prepare(grid, n=n, F=filters, GRAD=grad, BLOCK=BLOCK)
    launch(gate_epilogue_kernel, prepared, x.device, x_ptr=x, gates_ptr=gates, out_ptr=out)
    return out
