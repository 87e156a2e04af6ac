"""The kernels of the gated resnet: matmuls of rows with their epilogues.

A program calls its epilogue for one group of columns after another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .expand import deinterleave, drop, elu_pair, elu_slopes, widen
from .matmul import matmul, parts_of, weight_gradient_tile
from .weights import unpack_block

# Channels per call of an epilogue: 64 bytes of a row, and few registers.
CHANNELS = tl.constexpr(32)


@triton.jit
def add_bias(acc, bias_ptr, offs, N: tl.constexpr):
    """acc (P, columns) + bias[offs], with N biases in all."""
    return acc + widen(tl.load(bias_ptr + offs, mask=offs < N, other=0.0))[None, :]


@triton.jit
def store_hidden(
    acc, bias_ptr, nin_bias_ptr, h_ptr, kept_ptr, eh_ptr, rows, is_pixel, first_n,
    F: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Store columns first_n .. of h (P, F) = acc + biases, and D concat_elu(h), `rows` of 2F."""
    offs_n = first_n + tl.arange(0, acc.shape[1])
    if nin_bias_ptr is not None:
        acc = add_bias(acc, nin_bias_ptr, offs_n, N=F)
    acc = add_bias(acc, bias_ptr, offs_n, N=F)
    mask = is_pixel[:, None] & (offs_n < F)[None, :]
    h = acc.to(h_ptr.dtype.element_ty)
    tl.store(h_ptr + tl.arange(0, acc.shape[0])[:, None] * F + offs_n[None, :], h, mask=mask)
    positive, negative = elu_pair(h)
    if kept_ptr is not None:
        kept = tl.load(kept_ptr + rows[:, None] * F + offs_n[None, :], mask=mask, other=0)
        positive, negative = drop(positive, negative, kept, SCALE)
    ptrs = eh_ptr + rows[:, None] * (2 * F) + offs_n[None, :]
    tl.store(ptrs, positive.to(h.dtype), mask=mask)
    tl.store(ptrs + F, negative.to(h.dtype), mask=mask)


@triton.jit
def hidden_kernel(
    e_ptr, w_ptr, bias_ptr, nin_bias_ptr, h_ptr, kept_ptr, eh_ptr, size, plane_stride, steps,
    F: tl.constexpr, PLANES: tl.constexpr, SCALE: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Compute h (P, F) from e, planes of 2F channels: concat_elu of x, then of the skips. Also
    write eh = D concat_elu(h), rows of 2F, for pixels only. w: (F, (taps + PLANES) 2F). kept:
    dropout bits, rows of F, or None."""
    acc, acc2, block, first_n, base, rows, is_pixel = matmul(
        e_ptr, w_ptr, tl.program_id(0), size, plane_stride, steps, C=2 * F, N=F, PLANES=PLANES, G=G
    )
    h_ptr += (block * G.block_p).to(tl.int64) * F
    if kept_ptr is not None:
        kept_ptr += base * F
    eh_ptr += base * (2 * F)
    parts = parts_of(acc, acc2, CHANNELS, G)
    for i in tl.static_range(len(parts)):
        store_hidden(
            parts[i], bias_ptr, nin_bias_ptr, h_ptr, kept_ptr, eh_ptr, rows, is_pixel,
            first_n + i * parts[0].shape[1], F=F, SCALE=SCALE,
        )  # fmt: skip


@triton.jit
def store_gate(
    acc, bias_ptr, image_bias_ptr, x_ptr, y_ptr, gates_ptr, is_pixel, image, first_f,
    F: tl.constexpr,
):  # fmt: skip
    """Store the results of gate_kernel for channels first_f ..; A and G alternate in acc."""
    offs_f = first_f + tl.arange(0, acc.shape[1] // 2)
    mask_f = offs_f < F
    a, g = deinterleave(acc)
    a = add_bias(a, bias_ptr, offs_f, N=F)
    g = add_bias(g, bias_ptr + F, offs_f, N=F)
    mask = is_pixel[:, None] & mask_f[None, :]
    if image_bias_ptr is not None:
        bias_ptrs = image_bias_ptr + image[:, None] * (2 * F) + offs_f[None, :]
        a += widen(tl.load(bias_ptrs, mask=mask, other=0.0))
        g += widen(tl.load(bias_ptrs + F, mask=mask, other=0.0))
    offs = tl.arange(0, acc.shape[0])[:, None] * F + offs_f[None, :]
    x = widen(tl.load(x_ptr + offs, mask=mask, other=0.0))
    y = x + a / (1 + tl.exp(-g))
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)
    if gates_ptr is not None:
        gates = gates_ptr + tl.arange(0, acc.shape[0])[:, None] * (2 * F) + offs_f[None, :]
        tl.store(gates, a.to(gates_ptr.dtype.element_ty), mask=mask)
        tl.store(gates + F, g.to(gates_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_kernel(
    e_ptr, w_ptr, bias_ptr, image_bias_ptr, x_ptr, y_ptr, gates_ptr, size, steps,
    F: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """y (P, F) = x + A sigmoid(G), with (A, G) = conv_out(e) + bias, e of 2F channels.

    A and G go to gates (P, 2F), if not None. w: (2F, taps 2F), filters A_0, G_0, A_1, ...
    """
    acc, acc2, block, first_n, _, _, is_pixel = matmul(
        e_ptr, w_ptr, tl.program_id(0), size, 0, steps, C=2 * F, N=2 * F, PLANES=0, G=G
    )
    first = block * G.block_p
    x_ptr += first.to(tl.int64) * F
    y_ptr += first.to(tl.int64) * F
    if gates_ptr is not None:
        gates_ptr += first.to(tl.int64) * (2 * F)
    image = first
    if image_bias_ptr is not None:
        pixels = size[1] * size[2]
        image_bias_ptr += (first // pixels).to(tl.int64) * (2 * F)
        image = (first % pixels + tl.arange(0, G.block_p)) // pixels
    parts = parts_of(acc, acc2, 2 * CHANNELS, G)
    for i in tl.static_range(len(parts)):
        store_gate(
            parts[i], bias_ptr, image_bias_ptr, x_ptr, y_ptr, gates_ptr, is_pixel, image,
            (first_n + i * parts[0].shape[1]) // 2, F=F,
        )  # fmt: skip


@triton.jit
def store_data_gradient(
    acc, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, rows, is_pixel, first_f, first_c,
    F: tl.constexpr, C: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Store the results of data_gradient_tile for channels first_c + first_f .. of a plane."""
    offs_f = first_f + tl.arange(0, acc.shape[1] // 2)
    mask_f = (offs_f < F) & (first_c + offs_f < C)
    mask = is_pixel[:, None] & mask_f[None, :]
    positive, negative = deinterleave(acc)
    offs_row = rows[:, None] * F + offs_f[None, :]
    if kept_ptr is not None:
        kept = tl.load(kept_ptr + offs_row, mask=mask, other=0)
        positive, negative = drop(positive, negative, kept, SCALE)
    offs_x = tl.arange(0, acc.shape[0])[:, None] * C + (first_c + offs_f)[None, :]
    x = tl.load(x_ptr + offs_x, mask=mask, other=0.0)
    slope, slope_negative = elu_slopes(x)
    dx = slope * positive - slope_negative * negative
    if add_ptr is not None:
        dx += widen(tl.load(add_ptr + offs_x, mask=mask, other=0.0))
    if sums_ptr is not None:
        tl.store(dx_ptr + offs_row, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(sums_ptr + offs_f, tl.sum(tl.where(mask, dx, 0.0), axis=0), mask=mask_f)
    else:
        tl.store(dx_ptr + offs_x, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def data_gradient_tile(
    g_ptr, w_ptr, x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, pid, size, steps, first_c,
    F: tl.constexpr, C: tl.constexpr, D: tl.constexpr, SCALE: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """dx of conv(D E(x)), given the gradient g of that convolution's output, rows of D.

    dx = elu'(x) dE+ - elu'(-x) dE-, plus the image `add` if not None, for F channels of an image
    (P, C), starting at first_c. If `sums` is not None, x is h, dx goes to rows of F, for pixels
    only, and its sums over each block go to sums (blocks, F). G has the adjoint's taps.
    w: (2F, taps D), dE+_0, dE-_0, dE+_1, ...
    """
    acc, acc2, block, first_n, base, rows, is_pixel = matmul(
        g_ptr, w_ptr, pid, size, 0, steps, C=D, N=2 * F, PLANES=0, G=G
    )
    start = (block * G.block_p).to(tl.int64) * C
    x_ptr += start
    if kept_ptr is not None:
        kept_ptr += base * F
    if add_ptr is not None:
        add_ptr += start
    if sums_ptr is not None:
        dx_ptr += base * F
        sums_ptr += block.to(tl.int64) * F
    else:
        dx_ptr += start
    parts = parts_of(acc, acc2, 2 * CHANNELS, G)
    for i in tl.static_range(len(parts)):
        store_data_gradient(
            parts[i], x_ptr, kept_ptr, add_ptr, dx_ptr, sums_ptr, rows, is_pixel,
            (first_n + i * parts[0].shape[1]) // 2, first_c, F=F, C=C, SCALE=SCALE,
        )  # fmt: skip


@triton.jit
def hidden_gradient_kernel(
    g_ptr, w_ptr, h_ptr, kept_ptr, dh_ptr, sums_ptr, size, steps,
    F: tl.constexpr, SCALE: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """dh, rows of F, from the gradients g of A and G, rows of 2F; sums (blocks, F)."""
    data_gradient_tile(
        g_ptr, w_ptr, h_ptr, kept_ptr, None, dh_ptr, sums_ptr, tl.program_id(0), size, steps, 0,
        F=F, C=F, D=2 * F, SCALE=SCALE, G=G,
    )  # fmt: skip


@triton.jit
def last_gradients_kernel(
    g_ptr, w_ptr, nin_ptr, x, dy_ptr, dx, programs, size, steps, point_steps, first_program,
    unpacked, CHANNELS: tl.constexpr, G: tl.constexpr, POINT: tl.constexpr,
):  # fmt: skip
    """The gradients that no other kernel reads. The programs before first_program finish those of
    the parameters, as `unpacked` says if not None. The others compute those dx of the inputs
    (x, skip, skip_2) from g = dh, rows of F.

    CHANNELS: F of x, then those of the skips, 0 if absent. Tiles are in this order: the gradient of
    x, then planes of F channels of the skips. programs: tiles per plane; nin: weights of the
    planes, with the taps of POINT.
    """
    F: tl.constexpr = CHANNELS[0]
    if unpacked is not None:  # noqa: SIM102 - a constexpr: if false, the body is not compiled
        if tl.program_id(0) < first_program:
            unpack_block(tl.program_id(0), unpacked, CHANNELS=CHANNELS, G=G)
    tile = tl.program_id(0) - first_program
    plane = tile // programs
    pid = tile % programs
    if (tile >= 0) & (plane == 0):
        data_gradient_tile(
            g_ptr, w_ptr, x[0], None, dy_ptr, dx[0], None, pid, size, steps, 0,
            F=F, C=F, D=F, SCALE=1.0, G=G,
        )  # fmt: skip
    plane -= 1
    nin_ptr += plane * (2 * F * F)
    for i in tl.static_range(1, 3):
        if CHANNELS[i] > 0:  # noqa: SIM102 - as above
            if (tile >= 0) & (plane >= 0) & (plane * F < CHANNELS[i]):
                data_gradient_tile(
                    g_ptr, nin_ptr, x[i], None, None, dx[i], None, pid, size, point_steps,
                    plane * F, F=F, C=CHANNELS[i], D=F, SCALE=1.0, G=POINT,
                )  # fmt: skip
        plane -= (CHANNELS[i] + F - 1) // F


@triton.jit
def parameter_gradient_kernel(
    e_ptr, eh_ptr, dh_ptr, d_gates_ptr, hidden_ptr, out_ptr, pitch, plane_stride,
    hidden_tiles, hidden_programs, out_tiles, blocks, steps,
    F: tl.constexpr, PLANES: tl.constexpr, PART: tl.constexpr,
    HIDDEN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Partial sums of the gradients of packed weights (see `weight_gradient_tile`).

    The first hidden_programs programs compute those of conv_in and nin_skip, from e, planes of 2F
    channels, and dh. The others compute those of conv_out, from eh = D concat_elu(h) and d_gates.
    """
    pid = tl.program_id(0)
    if pid < hidden_programs:
        weight_gradient_tile(
            e_ptr, dh_ptr, hidden_ptr, pid % hidden_tiles, pid // hidden_tiles, pitch,
            plane_stride, blocks, steps,
            C=2 * F, D=F, PART=PART, PLANES=PLANES, G=HIDDEN,
        )  # fmt: skip
    # No else: Triton would allocate separate shared memory for each branch.
    if pid >= hidden_programs:
        pid -= hidden_programs
        weight_gradient_tile(
            eh_ptr, d_gates_ptr, out_ptr, pid % out_tiles, pid // out_tiles, pitch,
            0, blocks, steps,
            C=2 * F, D=2 * F, PART=PART, PLANES=0, G=OUT,
        )  # fmt: skip
