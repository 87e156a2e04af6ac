"""The kernels of the gated resnet: each one a matmul of rows and what ends it.

`gated_resnet.py` launches them. A program's columns are two accumulators (see `matmul.py`), so each
ending is a function of its own, called once for each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elementwise import deinterleave, drop, elu_slopes, widen
from .matmul import accumulate, place_of, zeros


@triton.jit
def add_bias(acc, bias_ptr, offs, N: tl.constexpr):
    """acc (P, columns) + bias, of columns offs of N."""
    return acc + widen(tl.load(bias_ptr + offs, mask=offs < N, other=0.0))[None, :]


@triton.jit
def store_hidden(
    acc, bias_ptr, nin_bias_ptr, h_ptr, place, is_pixel, first_n,
    F: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Columns first_n .. of h (P, F) = acc + biases."""
    offs_n = first_n + tl.arange(0, BLOCK)
    if SKIP:
        acc = add_bias(acc, nin_bias_ptr, offs_n, N=F)
    acc = add_bias(acc, bias_ptr, offs_n, N=F)
    tl.store(
        h_ptr + place[:, None] * F + offs_n[None, :],
        acc.to(h_ptr.dtype.element_ty),
        mask=is_pixel[:, None] & (offs_n < F)[None, :],
    )


@triton.jit
def hidden_kernel(
    e_ptr, w_ptr, bias_ptr, nin_bias_ptr, h_ptr, batch, height, width, plane_stride, steps,
    F: tl.constexpr, PLANES: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h (P, F) from e, planes of 2F channels: concat_elu of x, then of the skips.

    w: (F, (KH KW + PLANES) 2F).
    """
    blocks_n: tl.constexpr = (F + N1 + N2 - 1) // (N1 + N2)
    pid = tl.program_id(0)
    first_row = (pid // blocks_n).to(tl.int64) * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, e_ptr, w_ptr, first_row, first_n, width + KW - 1, plane_stride, steps,
        C=2 * F, N=F, KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, PLANES=PLANES, PRECISION=PRECISION,
        BLOCK_P=BLOCK_P, N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    base, place, is_pixel = place_of(first_row, batch, height, width, KH=KH, KW=KW, BLOCK=BLOCK_P)
    h_ptr += base * F
    store_hidden(
        acc, bias_ptr, nin_bias_ptr, h_ptr, place, is_pixel, first_n,
        F=F, SKIP=PLANES > 0, BLOCK=N1,
    )  # fmt: skip
    if N2 > 0:
        store_hidden(
            acc2, bias_ptr, nin_bias_ptr, h_ptr, place, is_pixel, first_n + N1,
            F=F, SKIP=PLANES > 0, BLOCK=N2,
        )  # fmt: skip


@triton.jit
def store_gate(
    acc, bias_ptr, x_ptr, out_ptr, sums_ptr, place, is_pixel, first_f,
    F: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What gate_kernel writes of channels first_f .., whose A and G are acc's columns in turn."""
    offs_f = first_f + tl.arange(0, BLOCK // 2)
    mask_f = offs_f < F
    a, g = deinterleave(acc)
    a = add_bias(a, bias_ptr, offs_f, N=F)
    g = add_bias(g, bias_ptr + F, offs_f, N=F)
    gate = 1 / (1 + tl.exp(-g))
    mask = is_pixel[:, None] & mask_f[None, :]
    offs = place[:, None] * F + offs_f[None, :]
    x = widen(tl.load(x_ptr + offs, mask=mask, other=0.0))
    if GRAD:
        da = tl.where(mask, x * gate, 0.0)
        dg = tl.where(mask, da * a * (1 - gate), 0.0)
        out = out_ptr + tl.arange(0, BLOCK_P)[:, None] * (2 * F) + offs_f[None, :]
        tl.store(out, da.to(out_ptr.dtype.element_ty), mask=mask_f[None, :])
        tl.store(out + F, dg.to(out_ptr.dtype.element_ty), mask=mask_f[None, :])
        sums = sums_ptr + offs_f
        tl.store(sums, tl.sum(da, axis=0), mask=mask_f)
        tl.store(sums + F, tl.sum(dg, axis=0), mask=mask_f)
    else:
        tl.store(out_ptr + offs, (x + a * gate).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_kernel(
    e_ptr, w_ptr, bias_ptr, x_ptr, out_ptr, sums_ptr, batch, height, width, steps,
    F: tl.constexpr, GRAD: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y (P, F) = x + A sigmoid(G), with (A, G) = conv_out(e) + bias, e of 2F channels.

    With GRAD, x is dy, and out the gradients of A and of G, rows of 2F; sums (blocks, 2F) are
    theirs over each block of rows. w: (2F, KH KW 2F), filters A_0, G_0, A_1, ...
    """
    blocks_n: tl.constexpr = (2 * F + N1 + N2 - 1) // (N1 + N2)
    pid = tl.program_id(0)
    block = (pid // blocks_n).to(tl.int64)
    first_row = block * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, e_ptr, w_ptr, first_row, first_n, width + KW - 1, 0, steps,
        C=2 * F, N=2 * F, KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, PLANES=0, PRECISION=PRECISION,
        BLOCK_P=BLOCK_P, N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    base, place, is_pixel = place_of(first_row, batch, height, width, KH=KH, KW=KW, BLOCK=BLOCK_P)
    x_ptr += base * F
    out_ptr += first_row * (2 * F) if GRAD else base * F
    sums_ptr += block * (2 * F)
    store_gate(
        acc, bias_ptr, x_ptr, out_ptr, sums_ptr, place, is_pixel, first_n // 2,
        F=F, GRAD=GRAD, BLOCK=N1, BLOCK_P=BLOCK_P,
    )  # fmt: skip
    if N2 > 0:
        store_gate(
            acc2, bias_ptr, x_ptr, out_ptr, sums_ptr, place, is_pixel, (first_n + N1) // 2,
            F=F, GRAD=GRAD, BLOCK=N2, BLOCK_P=BLOCK_P,
        )  # fmt: skip


@triton.jit
def store_data_gradient(
    acc, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, place, is_pixel, first_f, first_c,
    F: tl.constexpr, C: tl.constexpr, DROPOUT: tl.constexpr, SCALE: tl.constexpr,
    ADD: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What data_gradient_kernel writes of channels first_c + first_f .. of a plane."""
    offs_f = first_f + tl.arange(0, BLOCK // 2)
    mask_f = (offs_f < F) & (first_c + offs_f < C)
    mask = is_pixel[:, None] & mask_f[None, :]
    positive, negative = deinterleave(acc)
    offs_row = tl.arange(0, BLOCK_P)[:, None] * F + offs_f[None, :]
    if DROPOUT:
        kept = tl.load(kept_ptr + offs_row, mask=mask, other=0)
        positive, negative = drop(positive, negative, kept, SCALE)
    offs_x = place[:, None] * C + (first_c + offs_f)[None, :]
    x = tl.load(x_ptr + offs_x, mask=mask, other=0.0)
    slope, slope_negative = elu_slopes(x)
    dx = slope * positive - slope_negative * negative
    if ADD:
        dx += widen(tl.load(add_ptr + offs_x, mask=mask, other=0.0))
    if HIDDEN:
        dx = tl.where(mask, dx, 0.0)
        tl.store(dx_ptr + offs_row, dx.to(dx_ptr.dtype.element_ty), mask=mask_f[None, :])
        tl.store(sums_ptr + offs_f, tl.sum(dx, axis=0), mask=mask_f)
    else:
        tl.store(dx_ptr + offs_x, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def data_gradient_kernel(
    g_ptr, w_ptr, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, batch, height, width, steps, first_c,
    F: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, TOP: tl.constexpr, LEFT: tl.constexpr,
    PADDED_H: tl.constexpr, PADDED_W: tl.constexpr,
    DROPOUT: tl.constexpr, SCALE: tl.constexpr, ADD: tl.constexpr, HIDDEN: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx of conv(D E(x)), given the gradient g of that convolution's output, rows of D.

    dx = elu'(x) dE+ - elu'(-x) dE-, plus an image (ADD), of F channels from first_c on of an image
    (P, C). HIDDEN: x is h, and dx goes to rows of F, with zeros where there is no pixel; its sums
    over each block of rows, (blocks, F), are written too. KH .. LEFT are the adjoint's taps; rows
    are padded for kernels of PADDED_H x PADDED_W. w: (2F, KH KW D), dE+_0, dE-_0, dE+_1, ...
    """
    blocks_n: tl.constexpr = (2 * F + N1 + N2 - 1) // (N1 + N2)
    pid = tl.program_id(0)
    block = (pid // blocks_n).to(tl.int64)
    first_row = block * BLOCK_P
    first_n = pid % blocks_n * (N1 + N2)
    acc, acc2 = zeros(BLOCK_P, N1, N2, ACC)
    acc, acc2 = accumulate(
        acc, acc2, g_ptr, w_ptr, first_row, first_n, width + PADDED_W - 1, 0, steps,
        C=D, N=2 * F, KH=KH, KW=KW, TOP=TOP, LEFT=LEFT, PLANES=0, PRECISION=PRECISION,
        BLOCK_P=BLOCK_P, N1=N1, N2=N2, BLOCK_K=BLOCK_K,
    )  # fmt: skip
    base, place, is_pixel = place_of(
        first_row, batch, height, width, KH=PADDED_H, KW=PADDED_W, BLOCK=BLOCK_P
    )
    x_ptr += base * C
    add_ptr += base * C
    kept_ptr += first_row * F
    dx_ptr += first_row * F if HIDDEN else base * C
    sums_ptr += block * F
    store_data_gradient(
        acc, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, place, is_pixel, first_n // 2, first_c,
        F=F, C=C, DROPOUT=DROPOUT, SCALE=SCALE,
        ADD=ADD, HIDDEN=HIDDEN, BLOCK=N1, BLOCK_P=BLOCK_P,
    )  # fmt: skip
    if N2 > 0:
        store_data_gradient(
            acc2, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, place, is_pixel,
            (first_n + N1) // 2, first_c, F=F, C=C, DROPOUT=DROPOUT, SCALE=SCALE,
            ADD=ADD, HIDDEN=HIDDEN, BLOCK=N2, BLOCK_P=BLOCK_P,
        )  # fmt: skip
