"""The gated resnet: two kernels forward, a few more backward.

    h = conv_in(E(x)) + nin(E(a)) + biases           hidden_kernel
    y = x + A sigmoid(G), (A, G) = conv_out(D E(h))  gate_kernel

with E = concat_elu and dropout D. Between them only h and, with dropout, `kept` go through memory:
one byte per element of h, whose bits 0 and 1 say whether elu(h) and elu(-h) stay. Backward, A and G
are computed anew (gate_kernel with GRAD), and each data gradient ends with the slopes of elu.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dropout import draw, draw_kept
from .geometry import Taps, empty_channels_last, n_pixels, strides_of
from .launch import arithmetic, choose, launch, wide_dtype
from .shifted_conv import weight_gradient
from .taps import (
    convolve,
    convolve_transposed,
    deinterleave,
    drop,
    elu_slopes,
    interleave,
    pixel_block,
    pixel_pointers,
    widen,
)
from .weights import pack, unpack

POINT = Taps(1, 1, 0, 0)


@triton.jit
def hidden_kernel(
    x_ptr, x_strides, a0_ptr, a0_strides, a1_ptr, a1_strides,
    w_ptr, bias_ptr, nin_ptr, nin_bias_ptr, seed_ptr, h_ptr, kept_ptr,
    n_pixels, height, width, steps, steps0, steps1, layer, keep_from, first_pixel,
    F: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DROPOUT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h (P, F), and with DROPOUT kept (P, F) too.

    w: (T, 2F, F); nin: (2 S0 + 2 S1, F); S0 and S1 are channels of the skips, 0 for none.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks_n: tl.constexpr = (F + BLOCK_N - 1) // BLOCK_N
    offs_p, image, row, col, mask_p = pixel_block(
        pid // blocks_n * BLOCK_P, n_pixels, height, width, BLOCK_P
    )
    first_n = pid % blocks_n * BLOCK_N
    offs_n = first_n + tl.arange(0, BLOCK_N)
    mask_n = offs_n < F
    acc = tl.zeros((BLOCK_P, BLOCK_N), dtype=ACC)
    acc = convolve(
        acc, x_ptr, x_strides, w_ptr, image=image, row=row, col=col, mask_p=mask_p,
        height=height, width=width, offs_n=offs_n, mask_n=mask_n, steps=steps,
        CHANNELS=F, N=F, PRECISION=PRECISION, BLOCK_K=BLOCK_K,
        KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, ELU=True,
    )  # fmt: skip
    if S0 > 0:
        acc = convolve(
            acc, a0_ptr, a0_strides, nin_ptr, image=image, row=row, col=col, mask_p=mask_p,
            height=height, width=width, offs_n=offs_n, mask_n=mask_n, steps=steps0,
            CHANNELS=S0, N=F, PRECISION=PRECISION, BLOCK_K=BLOCK_K, ELU=True,
        )  # fmt: skip
        acc += widen(tl.load(nin_bias_ptr + offs_n, mask=mask_n, other=0.0))[None, :]
    if S1 > 0:
        acc = convolve(
            acc, a1_ptr, a1_strides, nin_ptr + 2 * S0 * F,
            image=image, row=row, col=col, mask_p=mask_p,
            height=height, width=width, offs_n=offs_n, mask_n=mask_n, steps=steps1,
            CHANNELS=S1, N=F, PRECISION=PRECISION, BLOCK_K=BLOCK_K, ELU=True,
        )  # fmt: skip
    acc += widen(tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0))[None, :]
    tl.store(
        h_ptr + offs_p[:, None] * F + offs_n[None, :],
        acc.to(h_ptr.dtype.element_ty),
        mask=mask_p[:, None] & mask_n[None, :],
    )
    if DROPOUT:
        draw_kept(
            kept_ptr, seed_ptr, layer, keep_from, first_pixel,
            offs_p=offs_p, mask_p=mask_p, first_f=first_n, F=F, BLOCK_F=BLOCK_N,
        )  # fmt: skip


@triton.jit
def gate_kernel(
    h_ptr, h_strides, kept_ptr, w_ptr, bias_ptr, x_ptr, x_strides,
    out_ptr, sums_ptr, n_pixels, height, width, steps,
    F: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DROPOUT: tl.constexpr, SCALE: tl.constexpr, GRAD: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = y (P, F) = x + A sigmoid(G), with (A, G) = conv_out(D E(h)) + bias.

    With GRAD, x is dy, and out (P, 2F) the gradients of A_0, G_0, A_1, ...; sums (blocks, 2F) are
    theirs over each block of pixels, A first. w: (T, 2F, 2F), filters A_0, G_0, A_1, ...
    """
    BLOCK_F: tl.constexpr = BLOCK_N // 2
    pid = tl.program_id(0).to(tl.int64)
    blocks_n: tl.constexpr = (F + BLOCK_F - 1) // BLOCK_F
    offs_p, image, row, col, mask_p = pixel_block(
        pid // blocks_n * BLOCK_P, n_pixels, height, width, BLOCK_P
    )
    offs_n = pid % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_f = pid % blocks_n * BLOCK_F + tl.arange(0, BLOCK_F)
    mask_n = offs_n < 2 * F
    mask_f = offs_f < F
    acc = tl.zeros((BLOCK_P, BLOCK_N), dtype=ACC)
    acc = convolve(
        acc, h_ptr, h_strides, w_ptr, image=image, row=row, col=col, mask_p=mask_p,
        height=height, width=width, offs_n=offs_n, mask_n=mask_n, steps=steps,
        CHANNELS=F, N=2 * F, PRECISION=PRECISION, BLOCK_K=BLOCK_K,
        KH=KH, KW=KW, TOP=TOP, LEFT=LEFT,
        ELU=True, kept_ptr=kept_ptr if DROPOUT else None, SCALE=SCALE,
    )  # fmt: skip
    a, g = deinterleave(acc)  # (BLOCK_P, BLOCK_F)
    a += widen(tl.load(bias_ptr + offs_f, mask=mask_f, other=0.0))[None, :]
    g += widen(tl.load(bias_ptr + F + offs_f, mask=mask_f, other=0.0))[None, :]
    gate = 1 / (1 + tl.exp(-g))
    mask = mask_p[:, None] & mask_f[None, :]
    x_ptrs = pixel_pointers(x_ptr, x_strides, image, row, col)
    x = widen(tl.load(x_ptrs[:, None] + offs_f[None, :] * x_strides[3], mask=mask, other=0.0))
    if GRAD:
        da = x * gate
        dg = da * a * (1 - gate)
        tl.store(
            out_ptr + offs_p[:, None] * (2 * F) + offs_n[None, :],
            interleave(da, dg).to(out_ptr.dtype.element_ty),
            mask=mask_p[:, None] & mask_n[None, :],
        )
        sums = sums_ptr + pid // blocks_n * (2 * F) + offs_f
        tl.store(sums, tl.sum(da, axis=0), mask=mask_f)
        tl.store(sums + F, tl.sum(dg, axis=0), mask=mask_f)
    else:
        y = x + a * gate
        tl.store(
            out_ptr + offs_p[:, None] * F + offs_f[None, :],
            y.to(out_ptr.dtype.element_ty),
            mask=mask,
        )


@triton.jit
def data_gradient_kernel(
    g_ptr, g_strides, w_ptr, x_ptr, x_strides, kept_ptr, add_ptr, add_strides,
    dx_ptr, sums_ptr, n_pixels, height, width, steps,
    C: tl.constexpr, D: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    DROPOUT: tl.constexpr, SCALE: tl.constexpr, ADD: tl.constexpr, SUMS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx (P, C) of conv(D E(x)), given g (P, D), the gradient of that convolution's output.

    dx = elu'(x) dE+ - elu'(-x) dE-, plus an image (ADD); with SUMS, its sums over each block of
    pixels (blocks, C) too. w: (T, 2C, D), packed as for the convolution.
    """
    BLOCK_C: tl.constexpr = BLOCK_N // 2
    pid = tl.program_id(0).to(tl.int64)
    blocks_n: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    offs_p, image, row, col, mask_p = pixel_block(
        pid // blocks_n * BLOCK_P, n_pixels, height, width, BLOCK_P
    )
    offs_n = pid % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_c = pid % blocks_n * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    acc = tl.zeros((BLOCK_P, BLOCK_N), dtype=ACC)
    acc = convolve_transposed(
        acc, g_ptr, g_strides, w_ptr, image=image, row=row, col=col, mask_p=mask_p,
        height=height, width=width, offs_n=offs_n, mask_n=offs_n < 2 * C, steps=steps,
        CHANNELS=D, N=2 * C, PRECISION=PRECISION, BLOCK_K=BLOCK_K,
        KH=KH, KW=KW, TOP=TOP, LEFT=LEFT,
    )  # fmt: skip
    positive, negative = deinterleave(acc)  # (BLOCK_P, BLOCK_C)
    mask = mask_p[:, None] & mask_c[None, :]
    offs_x = offs_p[:, None] * C + offs_c[None, :]
    if DROPOUT:
        kept = tl.load(kept_ptr + offs_x, mask=mask, other=0)
        positive, negative = drop(positive, negative, kept, SCALE)
    x_ptrs = pixel_pointers(x_ptr, x_strides, image, row, col)
    x = tl.load(x_ptrs[:, None] + offs_c[None, :] * x_strides[3], mask=mask, other=0.0)
    slope, slope_negative = elu_slopes(x)
    dx = slope * positive - slope_negative * negative
    if ADD:
        add_ptrs = pixel_pointers(add_ptr, add_strides, image, row, col)
        dx += widen(
            tl.load(add_ptrs[:, None] + offs_c[None, :] * add_strides[3], mask=mask, other=0.0)
        )
    tl.store(dx_ptr + offs_x, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if SUMS:
        sums = sums_ptr + pid // blocks_n * C + offs_c
        tl.store(sums, tl.sum(tl.where(mask, dx, 0.0), axis=0), mask=mask_c)


def _pack_all(weights: list[Tensor], gains: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """conv_in, conv_out and, if there is one, nin_skip."""
    return [
        pack(weight, gains[i] if gains else None, dtype, pairs_in=True, pairs_out=i == 1)
        for i, weight in enumerate(weights[::2])
    ]


def forward(
    x: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    taps: Taps,
    dropout: tuple[int, float],
    layer: int,
    first_image: int = 0,
) -> tuple[Tensor, Tensor]:
    """(y, h), (B, F, H, W) channels_last each.

    weights: conv_in, its bias, conv_out, its bias and, with skips, nin_skip and its bias. dropout:
    the least word >> 9 that is kept, and what kept elements are multiplied by; none without a seed.
    """
    f, rows, cols = x.shape[1:]
    count = n_pixels(x)
    w_in, w_out, *nin = _pack_all(weights, gains, x.dtype)
    h, y = (empty_channels_last(x, f) for _ in range(2))
    kept = None
    if seed is not None:
        kept = torch.empty((count, f), dtype=torch.uint8, device=x.device)
    first, second = (*skips, x, x)[:2]
    s0, s1 = (*(skip.shape[1] for skip in skips), 0, 0)[:2]
    tiling = choose("single", f, x)
    steps, steps0, steps1 = (triton.cdiv(2 * c, tiling.block_k) for c in (f, s0, s1))
    launch(
        hidden_kernel, (triton.cdiv(count, tiling.block_p) * triton.cdiv(f, tiling.block_n),),
        x.device,
        x_ptr=x, x_strides=strides_of(x),
        a0_ptr=first, a0_strides=strides_of(first), a1_ptr=second, a1_strides=strides_of(second),
        w_ptr=w_in, bias_ptr=weights[1],
        nin_ptr=nin[0] if nin else w_in, nin_bias_ptr=weights[5] if nin else weights[1],
        seed_ptr=x if seed is None else seed, h_ptr=h, kept_ptr=x if kept is None else kept,
        n_pixels=count, height=rows, width=cols,
        steps=steps, steps0=steps0, steps1=steps1, layer=layer, keep_from=dropout[0],
        first_pixel=first_image * rows * cols,
        F=f, S0=s0, S1=s1, DROPOUT=kept is not None,
        **taps.constants(), **arithmetic(x.dtype), **tiling.kernel_options(),
    )  # fmt: skip
    _gate(h, kept, dropout[1], w_out, weights[3], x, y, None, taps)
    return y, h


def _gate(
    h: Tensor,
    kept: Tensor | None,
    kept_scale: float,
    w_out: Tensor,
    bias: Tensor,
    x: Tensor,
    out: Tensor,
    sums: Tensor | None,
    taps: Taps,
) -> None:
    """gate_kernel, with GRAD if there are `sums`."""
    f, rows, cols = h.shape[1:]
    tiling = choose("paired", f, h)
    launch(
        gate_kernel,
        (triton.cdiv(n_pixels(h), tiling.block_p) * triton.cdiv(2 * f, tiling.block_n),),
        h.device,
        h_ptr=h, h_strides=strides_of(h), kept_ptr=h if kept is None else kept,
        w_ptr=w_out, bias_ptr=bias, x_ptr=x, x_strides=strides_of(x),
        out_ptr=out, sums_ptr=out if sums is None else sums,
        n_pixels=n_pixels(h), height=rows, width=cols, steps=triton.cdiv(2 * f, tiling.block_k),
        F=f, DROPOUT=kept is not None, SCALE=kept_scale, GRAD=sums is not None,
        **taps.constants(), **arithmetic(h.dtype), **tiling.kernel_options(),
    )  # fmt: skip


def _block_sums(like: Tensor, channels: int) -> Tensor:
    """Room for sums over each block of pixels, (blocks, channels)."""
    tiling = choose("paired", like.shape[1], like)
    blocks = triton.cdiv(n_pixels(like), tiling.block_p)
    return torch.empty((blocks, channels), dtype=wide_dtype(like.dtype), device=like.device)


def _data_gradient(
    g: Tensor,
    w: Tensor,
    x: Tensor,
    taps: Taps,
    *,
    kept: Tensor | None = None,
    kept_scale: float = 1.0,
    add: Tensor | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Gradient of x from that of conv(D E(x)), g (B, D, H, W) channels_last; w (T, 2C, D)."""
    channels, rows, cols = x.shape[1:]
    dx = empty_channels_last(x, channels)
    tiling = choose("paired", channels, x)
    launch(
        data_gradient_kernel,
        (triton.cdiv(n_pixels(x), tiling.block_p) * triton.cdiv(2 * channels, tiling.block_n),),
        x.device,
        g_ptr=g, g_strides=strides_of(g), w_ptr=w, x_ptr=x, x_strides=strides_of(x),
        kept_ptr=x if kept is None else kept,
        add_ptr=x if add is None else add, add_strides=strides_of(x if add is None else add),
        dx_ptr=dx, sums_ptr=dx if sums is None else sums,
        n_pixels=n_pixels(x), height=rows, width=cols,
        steps=triton.cdiv(g.shape[1], tiling.block_k), C=channels, D=g.shape[1],
        DROPOUT=kept is not None, SCALE=kept_scale, ADD=add is not None, SUMS=sums is not None,
        **taps.constants(), **arithmetic(x.dtype), **tiling.kernel_options(),
    )  # fmt: skip
    return dx


def backward(
    grad_y: Tensor,
    x: Tensor,
    h: Tensor,
    skips: list[Tensor],
    weights: list[Tensor],
    gains: list[Tensor],
    seed: Tensor | None,
    taps: Taps,
    dropout: tuple[int, float],
    layer: int,
    first_image: int = 0,
) -> list[Tensor]:
    """Gradients of x, the first five weights (nin_skip's bias has conv_in's), gains and skips."""
    f = x.shape[1]
    w_in, w_out, *nin = _pack_all(weights, gains, x.dtype)
    kept = None if seed is None else draw(h, seed, layer, dropout[0], first_image)
    d_gates = empty_channels_last(x, 2 * f)  # A_0, G_0, A_1, ...
    out_sums, in_sums = _block_sums(x, 2 * f), _block_sums(x, f)
    _gate(h, kept, dropout[1], w_out, weights[3], grad_y, d_gates, out_sums, taps)
    dh = _data_gradient(d_gates, w_out, h, taps, kept=kept, kept_scale=dropout[1], sums=in_sums)
    d_out = weight_gradient(h, d_gates, taps, elu=True, kept=kept, kept_scale=dropout[1])
    dx = _data_gradient(dh, w_in, x, taps, add=grad_y)
    packed = [weight_gradient(x, dh, taps, elu=True), d_out]

    d_skips, first = [], 0
    for skip in skips:
        last = first + 2 * skip.shape[1]
        d_skips.append(_data_gradient(dh, nin[0][:, first:last], skip, POINT))
        first = last
    if skips:
        parts = [weight_gradient(skip, dh, POINT, elu=True) for skip in skips]
        packed.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))

    d_weights, d_gains = [], []
    for i, grad in enumerate(packed):
        d_weight, d_gain = unpack(
            grad, weights[2 * i], gains[i] if gains else None, pairs_in=True, pairs_out=i == 1
        )
        d_weights.append(d_weight)
        d_gains += [] if d_gain is None else [d_gain]
        if i < 2:
            d_weights.append((in_sums, out_sums)[i].sum(0))
    return [dx, *d_weights, *d_gains, *d_skips]
