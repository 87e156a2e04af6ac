"""The logistic mixture's log-likelihood and its gradient in one pass over the parameters.

A program owns BLOCK_P neighbouring pixels of an image and all K components of each, in tiles of
(BLOCK_P, BLOCK_K), BLOCK_K the power of two that holds K. Every parameter is read once and every
derivative written once; between lie registers only. The equations are those of
csrc/logistic_mixture.h and docs, math.md section 2; arithmetic is float32 for every dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Whether the kernels below are run by Triton's interpreter: it reads TRITON_INTERPRET as it
# decorates them, that is now.
INTERPRETED = bool(triton.knobs.runtime.interpret)

MIN_LOG_SCALE = tl.constexpr(-7.0)
HALF_LEVEL = tl.constexpr(1 / 255)  # delta, half the distance of two of the 256 levels
LOG_LEVEL = tl.constexpr(-4.848116364598481)  # log(2 delta)
OUTER_LEVEL = tl.constexpr(0.999)  # beyond it, the outer levels take the tails

# exp(y) = 2^n exp(r): y = n ln 2 + r, with ln 2 in two parts, the first exact times any n that
# occurs; v + ROUND holds round(v) in its low bits.
LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)
LN2_LOW = tl.constexpr(-0.00021219444170128554)
ROUND = tl.constexpr(12582912.0)
LEAST_EXP = tl.constexpr(-87.33654)  # log of the smallest normal number
# (exp(r) - 1 - r) / r^2 interpolated at the Chebyshev nodes of |r| <= ln 2 / 2: exp(r) - 1 within
# 2.6e-8 of itself.
EXP_0 = tl.constexpr(0.5)
EXP_1 = tl.constexpr(0.16666576)
EXP_2 = tl.constexpr(0.041666556)
EXP_3 = tl.constexpr(0.008363179)
EXP_4 = tl.constexpr(0.0013926184)


@triton.jit
def exp_pair(y):
    """exp(y) and exp(y) - 1 for y <= 88, within 2 ulp; exp is never under 1.2e-38. NaN for NaN.

    The hardware's exponential is neither: at -80 it is off by 1e-5 of itself, and minus one it
    leaves nothing of a small y.
    """
    y = tl.where(y < LEAST_EXP, LEAST_EXP, y)
    shifted = y * LOG2_E + ROUND
    n = shifted - ROUND
    r = (y - n * LN2_HIGH) - n * LN2_LOW
    tail = (((EXP_4 * r + EXP_3) * r + EXP_2) * r + EXP_1) * r + EXP_0
    p = r * r * tail + r  # exp(r) - 1
    power = ((shifted.to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)
    return power * p + power, power * p + (power - 1.0)


@triton.jit
def colour_density(distance, log_scale, inverse_scale):
    """p = factor exp(exponent) of one colour; s d log p / dx and d log p / d log s.

    log p = z - log s - 2 softplus(z), so p = exp(-|z| - log s) / (1 + e)^2 with e = exp(-|z|).
    """
    z = distance * inverse_scale
    magnitude = tl.abs(z)
    e, em1 = exp_pair(-magnitude)
    inverse = 1.0 / (1.0 + e)
    tanh_half = -em1 * inverse  # tanh(|z| / 2)
    slope = tl.where(z < 0, tanh_half, -tanh_half)
    return -magnitude - log_scale, inverse * inverse, slope, magnitude * tanh_half - 1.0


@triton.jit
def colour_mass(x, distance, log_scale, inverse_scale):
    """As colour_density, for the probability of the level of x.

    With a, b = (x - mean +- delta) / s and D = a - b, that is sigma(a) - sigma(b), at level 0
    sigma(a), at level 255 sigma(-b). Seen from the mean, one edge of the level is far, |z| + D/2,
    and one near, |z| - D/2: sigma(far) sigma(-near) (1 - e^-D) whatever the sign of z, so the
    exponentials of |z| and D/2 serve all. And 1 - e^-D = D phi(D), log D = log(2 delta) - log s:
    no small difference, and no underflow at any scale.
    """
    z = distance * inverse_scale
    half = HALF_LEVEL * inverse_scale  # D / 2 <= 4.3
    half = tl.where(half > 1e-30, half, 1e-30)
    far = tl.abs(z) + half
    near = tl.abs(z) - half
    inside = near < 0
    exp_z, _ = exp_pair(-tl.abs(z))
    exp_half, half_em1 = exp_pair(-half)
    exp_far = exp_z * exp_half  # exp(-far)
    # exp(-|near|) is exp_z / exp_half, or the inverse.
    exp_near = tl.where(inside, exp_half, exp_z) / tl.where(inside, exp_z, exp_half)
    one_less = -half_em1 * (1.0 + exp_half)  # 1 - exp(-D)
    width = half + half
    phi = one_less / width
    d_width = exp_half * exp_half * width / one_less  # D / (e^D - 1)

    # The outermost levels keep one edge: level 0 the upper, a, which is the far one if z >= 0.
    is_first = x < -OUTER_LEVEL
    is_last = x > OUTER_LEVEL
    outer = is_first | is_last
    no_near = (is_first & (z >= 0)) | (is_last & (z < 0))
    no_far = (is_first & (z < 0)) | (is_last & (z >= 0))
    inverse_far = 1.0 / (1.0 + exp_far)
    inverse_near = 1.0 / (1.0 + exp_near)
    tail_far = tl.where(no_far, 0.0, exp_far * inverse_far)  # sigma(-far)
    tail_near = tl.where(no_near, 0.0, tl.where(inside, exp_near, 1.0) * inverse_near)

    exponent = tl.where(no_near | inside, 0.0, -near) + tl.where(outer, 0.0, LOG_LEVEL - log_scale)
    factor = tl.where(no_far, 1.0, inverse_far) * tl.where(no_near, 1.0, inverse_near)
    factor = factor * tl.where(outer, 1.0, phi)
    slope = tail_far - tail_near
    d_log_scale = near * tail_near - far * tail_far - tl.where(outer, 0.0, d_width)
    return exponent, factor, tl.where(z < 0, -slope, slope), d_log_scale


@triton.jit
def colour_terms(x, mean, raw_log_scale, DISCRETIZED: tl.constexpr):
    """p = factor exp(exponent) of one colour, 0.02 < factor <= 1, and the derivatives of log p by
    x and by the raw log-scale; all (BLOCK_P, BLOCK_K) but x (BLOCK_P, 1)."""
    clamped = raw_log_scale < MIN_LOG_SCALE
    log_scale = tl.where(clamped, MIN_LOG_SCALE, raw_log_scale)
    inverse_scale, _ = exp_pair(-log_scale)
    if DISCRETIZED:
        exponent, factor, slope, d_scale = colour_mass(x, x - mean, log_scale, inverse_scale)
    else:
        exponent, factor, slope, d_scale = colour_density(x - mean, log_scale, inverse_scale)
    return exponent, factor, slope * inverse_scale, tl.where(clamped, 0.0, d_scale)


@triton.jit
def tanh_pair(w):
    """tanh(w) = (1 - e) / (1 + e) and its slope 4 e / (1 + e)^2, with e = exp(-2 |w|)."""
    e, em1 = exp_pair(-2.0 * tl.abs(w))
    inverse = 1.0 / (1.0 + e)
    magnitude = -em1 * inverse
    return tl.where(w < 0, -magnitude, magnitude), 4.0 * e * inverse * inverse


@triton.jit
def load_group(ptrs, mask, stride_k, group: tl.constexpr, N_MIX: tl.constexpr):
    """The K parameters of group `group` of every pixel, (BLOCK_P, BLOCK_K) in float32.

    Lanes without a parameter are 0, which meets nothing unusual.
    """
    return tl.load(ptrs + group * N_MIX * stride_k, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_group(ptrs, value, mask, stride_k, group: tl.constexpr, N_MIX: tl.constexpr):
    tl.store(ptrs + group * N_MIX * stride_k, value.to(ptrs.dtype.element_ty), mask=mask)


@triton.jit
def log_prob_kernel(
    x_ptr,  # (B, C, H, W)
    params_ptr,  # (B, P, H, W)
    log_prob_ptr,  # (B, H, W), contiguous, float32
    grad_x_ptr,  # (B, C, H, W), contiguous; None: not wanted
    grad_params_ptr,  # (B, P, H, W); None: not wanted
    pixels,  # H W
    width,
    blocks,  # programs per image
    x_stride_b,
    x_stride_c,
    x_stride_row,
    x_stride_col,
    params_stride_b,
    params_stride_c,
    params_stride_row,
    params_stride_col,
    grad_stride_b,  # of grad_params, whose rows follow each other
    grad_stride_c,
    grad_stride_col,
    N_MIX: tl.constexpr,
    CHANNELS: tl.constexpr,
    DISCRETIZED: tl.constexpr,
    ROWS_FOLLOW: tl.constexpr,  # in x and params too: an image is then one row of pixels
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    offs_p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    mask_p = offs_p < pixels
    mask_k = offs_k < N_MIX
    mask = mask_p[:, None] & mask_k[None, :]  # (BLOCK_P, BLOCK_K), as all tiles
    if ROWS_FOLLOW:
        x_offs = offs_p * x_stride_col
        params_offs = offs_p * params_stride_col
    else:
        row, col = offs_p // width, offs_p % width
        x_offs = row * x_stride_row + col * x_stride_col
        params_offs = row * params_stride_row + col * params_stride_col
    x_ptrs = x_ptr + image * x_stride_b + x_offs[:, None]
    ptrs = params_ptr + image * params_stride_b
    ptrs = ptrs + params_offs[:, None] + offs_k[None, :] * params_stride_c

    # The channels of a pixel are groups of K: logits; per colour means, log-scales and, for RGB,
    # coefficients.
    logit = load_group(ptrs, mask, params_stride_c, 0, N_MIX)
    x0 = tl.load(x_ptrs, mask=mask_p[:, None], other=0.0).to(tl.float32)
    mean0 = load_group(ptrs, mask, params_stride_c, 1, N_MIX)
    scale0 = load_group(ptrs, mask, params_stride_c, 2, N_MIX)
    exponent, factor, d_x0, d_scale0 = colour_terms(x0, mean0, scale0, DISCRETIZED)
    if CHANNELS == 3:
        x1 = tl.load(x_ptrs + x_stride_c, mask=mask_p[:, None], other=0.0).to(tl.float32)
        x2 = tl.load(x_ptrs + 2 * x_stride_c, mask=mask_p[:, None], other=0.0).to(tl.float32)
        green_red, d_green_red = tanh_pair(load_group(ptrs, mask, params_stride_c, 3, N_MIX))
        mean1 = load_group(ptrs, mask, params_stride_c, 4, N_MIX) + green_red * x0
        scale1 = load_group(ptrs, mask, params_stride_c, 5, N_MIX)
        blue_red, d_blue_red = tanh_pair(load_group(ptrs, mask, params_stride_c, 6, N_MIX))
        mean2 = load_group(ptrs, mask, params_stride_c, 7, N_MIX)
        scale2 = load_group(ptrs, mask, params_stride_c, 8, N_MIX)
        blue_green, d_blue_green = tanh_pair(load_group(ptrs, mask, params_stride_c, 9, N_MIX))
        mean2 = mean2 + blue_red * x0 + blue_green * x1
        exponent1, factor1, d_x1, d_scale1 = colour_terms(x1, mean1, scale1, DISCRETIZED)
        exponent2, factor2, d_x2, d_scale2 = colour_terms(x2, mean2, scale2, DISCRETIZED)
        exponent = exponent + exponent1 + exponent2
        factor = factor * factor1 * factor2  # > 1e-5: a sum scaled by exponents alone is safe

    # log sum_k pi_k p_k = log sum_k factor_k e^(logit_k + exponent_k) - log sum_k e^logit_k
    logit = tl.where(mask_k[None, :], logit, float("-inf"))
    joint = logit + exponent
    max_logit = tl.max(logit, axis=1)[:, None]
    max_joint = tl.max(joint, axis=1)[:, None]
    weight = tl.exp(logit - max_logit)
    responsibility = factor * tl.exp(joint - max_joint)
    sum_weight = tl.sum(weight, axis=1)[:, None]
    sum_joint = tl.sum(responsibility, axis=1)[:, None]
    log_prob = (max_joint - max_logit) + (tl.log(sum_joint) - tl.log(sum_weight))
    log_prob_ptrs = log_prob_ptr + image * pixels + offs_p[:, None]
    tl.store(log_prob_ptrs, log_prob, mask=mask_p[:, None])
    responsibility = responsibility / sum_joint

    if grad_params_ptr is not None:
        grads = grad_params_ptr + image * grad_stride_b
        grads = grads + offs_p[:, None] * grad_stride_col + offs_k[None, :] * grad_stride_c
        d_logit = responsibility - weight / sum_weight
        store_group(grads, d_logit, mask, grad_stride_c, 0, N_MIX)
        store_group(grads, -responsibility * d_x0, mask, grad_stride_c, 1, N_MIX)
        store_group(grads, responsibility * d_scale0, mask, grad_stride_c, 2, N_MIX)
        if CHANNELS == 3:
            d_mean1 = -responsibility * d_x1
            d_mean2 = -responsibility * d_x2
            store_group(grads, d_mean1 * x0 * d_green_red, mask, grad_stride_c, 3, N_MIX)
            store_group(grads, d_mean1, mask, grad_stride_c, 4, N_MIX)
            store_group(grads, responsibility * d_scale1, mask, grad_stride_c, 5, N_MIX)
            store_group(grads, d_mean2 * x0 * d_blue_red, mask, grad_stride_c, 6, N_MIX)
            store_group(grads, d_mean2, mask, grad_stride_c, 7, N_MIX)
            store_group(grads, responsibility * d_scale2, mask, grad_stride_c, 8, N_MIX)
            store_group(grads, d_mean2 * x1 * d_blue_green, mask, grad_stride_c, 9, N_MIX)

    if grad_x_ptr is not None:
        grad_x_ptrs = grad_x_ptr + image * CHANNELS * pixels + offs_p
        dtype = grad_x_ptr.dtype.element_ty
        if CHANNELS == 3:
            # A colour also moves the means of the later ones.
            d_x0 = d_x0 - green_red * d_x1 - blue_red * d_x2
            d_x1 = d_x1 - blue_green * d_x2
            grad_x1 = tl.sum(responsibility * d_x1, axis=1).to(dtype)
            grad_x2 = tl.sum(responsibility * d_x2, axis=1).to(dtype)
            tl.store(grad_x_ptrs + pixels, grad_x1, mask=mask_p)
            tl.store(grad_x_ptrs + 2 * pixels, grad_x2, mask=mask_p)
        grad_x0 = tl.sum(responsibility * d_x0, axis=1).to(dtype)
        tl.store(grad_x_ptrs, grad_x0, mask=mask_p)


@triton.jit
def scale_kernel(
    unit_ptr,  # (B, N, H, W): the gradient of the sum of log_prob; rows follow each other
    grad_ptr,  # (B, H, W): the gradient by log_prob
    out_ptr,  # as unit_ptr, with the same strides
    channels,  # N
    pixels,
    width,
    blocks,
    stride_b,
    stride_c,
    stride_col,
    grad_stride_b,
    grad_stride_row,
    grad_stride_col,
    ROWS_FOLLOW: tl.constexpr,  # in grad too
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    image = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    offs_p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_p = offs_p < pixels
    mask = mask_p[:, None] & (offs_n < channels)[None, :]  # (BLOCK_P, BLOCK_N)
    if ROWS_FOLLOW:
        grad_offs = offs_p * grad_stride_col
    else:
        grad_offs = offs_p // width * grad_stride_row + offs_p % width * grad_stride_col
    grad_ptrs = grad_ptr + image * grad_stride_b + grad_offs[:, None]
    grad = tl.load(grad_ptrs, mask=mask_p[:, None], other=0.0)
    offs = image * stride_b + offs_p[:, None] * stride_col + offs_n[None, :] * stride_c
    unit = tl.load(unit_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offs, (unit * grad).to(out_ptr.dtype.element_ty), mask=mask)


class Config(NamedTuple):
    """How a launch is cut: tiles of (block_p, block_k), shared by 32 num_warps threads."""

    block_p: int
    block_k: int
    num_warps: int


def log_prob_config(n_mix: int, channels: int, discretized: bool) -> Config:
    """The frozen choice; no dtype or capability asks for another yet.

    How many numbers of a tile a thread holds is a matter of registers: of RGB some 20 tiles are
    alive at a time, and with 4 numbers of each the discretized likelihood spills.
    """
    numbers, num_warps = (2, 8) if channels == 3 and discretized else (4, 4)
    block_k = triton.next_power_of_2(n_mix)
    num_warps = min(32, max(num_warps, block_k // (32 * numbers)))
    return Config(max(1, 32 * numbers * num_warps // block_k), block_k, num_warps)


def scale_config(channels: int, adjacent_channels: bool) -> Config:
    """8 numbers a thread; the longer side of the tile lies along adjacent memory."""
    along = 128 if adjacent_channels else 8
    block_n = min(along, triton.next_power_of_2(channels))
    return Config(1024 // block_n, block_n, 4)


def log_prob(
    x: Tensor,
    params: Tensor,
    log_prob: Tensor,
    grad_x: Tensor | None,
    grad_params: Tensor | None,
    discretized: bool,
    config: Config | None = None,
) -> None:
    """Write log_prob, and the gradients of its sum where there is a tensor for them.

    x: (B, C, H, W) and params (B, P, H, W), float32 or shorter, with any strides. log_prob:
    (B, H, W) float32, contiguous. grad_x: as x, contiguous. grad_params: as params, contiguous or
    channels_last.
    """
    batch, channels, height, width = x.shape
    n_mix = params.shape[1] // (3 if channels == 1 else 10)
    config = config or log_prob_config(n_mix, channels, discretized)
    blocks = triton.cdiv(height * width, config.block_p)
    if batch * blocks == 0:
        return
    grad_strides = (0, 0, 0, 0) if grad_params is None else grad_params.stride()
    with torch.cuda.device_of(x):
        log_prob_kernel[(batch * blocks,)](
            x,
            params,
            log_prob,
            grad_x,
            grad_params,
            height * width,
            width,
            blocks,
            *x.stride(),
            *params.stride(),
            grad_strides[0],
            grad_strides[1],
            grad_strides[3],
            N_MIX=n_mix,
            CHANNELS=channels,
            DISCRETIZED=discretized,
            ROWS_FOLLOW=_rows_follow(x) and _rows_follow(params),
            BLOCK_P=config.block_p,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            enable_fp_fusion=True,
        )


def scale(unit: Tensor, grad: Tensor, out: Tensor) -> None:
    """Write to `out` (B, N, H, W) the product of `unit`, like it, and grad (B, H, W).

    unit and out: of one layout, contiguous or channels_last. grad: float32, with any strides.
    """
    batch, channels, height, width = unit.shape
    config = scale_config(channels, unit.stride(1) == 1)
    blocks = triton.cdiv(height * width, config.block_p)
    if batch * blocks == 0:
        return
    with torch.cuda.device_of(unit):
        scale_kernel[(batch * blocks, triton.cdiv(channels, config.block_k))](
            unit,
            grad,
            out,
            channels,
            height * width,
            width,
            blocks,
            unit.stride(0),
            unit.stride(1),
            unit.stride(3),
            *grad.stride(),
            ROWS_FOLLOW=_rows_follow(grad),
            BLOCK_P=config.block_p,
            BLOCK_N=config.block_k,
            num_warps=config.num_warps,
            enable_fp_fusion=True,
        )


def _rows_follow(tensor: Tensor) -> bool:
    return tensor.stride(-2) == tensor.shape[-1] * tensor.stride(-1)
