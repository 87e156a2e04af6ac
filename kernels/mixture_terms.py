"""Device functions: the contribution of one colour of a pixel to the mixture's likelihood.

All tiles are (BLOCK_P, BLOCK_K): BLOCK_P pixels and their components, in float32. Equations:
docs/math.md, section 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

MIN_LOG_SCALE = tl.constexpr(-7.0)
HALF_STEP = tl.constexpr(1 / 255)  # delta, half the distance between neighbouring bytes
LOG_STEP = tl.constexpr(-4.848116364598481)  # log(2 delta)
OUTER_BYTE = tl.constexpr(0.999)  # beyond it, the outer bytes take the tails
LARGE_LOGIT = tl.constexpr(256.0)
NORMAL_PEAK = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)

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
    """exp(y) and exp(y) - 1 for y <= 88, within 2 ulp; exp is at least 1.2e-38. NaN for NaN."""
    # The hardware's exp has an error of 1e-5 at -80, and exp(y) - 1 cancels for small y.
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
    """Like colour_density, for the probability of the byte of x.

    With a, b = (x - mean +- delta) / s and D = a - b, that is sigma(a) - sigma(b), for byte 0
    sigma(a), for byte 255 sigma(-b). One edge of the byte is far, |z| + D/2, and one near,
    |z| - D/2: sigma(far) sigma(-near) (1 - e^-D) whatever the sign of z. And 1 - e^-D = D phi(D),
    log D = log(2 delta) - log s: nothing cancels, and nothing underflows at any scale.
    """
    z = distance * inverse_scale
    half = HALF_STEP * inverse_scale  # D / 2 <= 4.3
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

    # The outermost bytes have one edge: byte 0 the upper one, a, which is far if z >= 0.
    is_first = x < -OUTER_BYTE
    is_last = x > OUTER_BYTE
    outer = is_first | is_last
    no_near = (is_first & (z >= 0)) | (is_last & (z < 0))
    no_far = (is_first & (z < 0)) | (is_last & (z >= 0))
    inverse_far = 1.0 / (1.0 + exp_far)
    inverse_near = 1.0 / (1.0 + exp_near)
    tail_far = tl.where(no_far, 0.0, exp_far * inverse_far)  # sigma(-far)
    tail_near = tl.where(no_near, 0.0, tl.where(inside, exp_near, 1.0) * inverse_near)

    exponent = tl.where(no_near | inside, 0.0, -near) + tl.where(outer, 0.0, LOG_STEP - log_scale)
    factor = tl.where(no_far, 1.0, inverse_far) * tl.where(no_near, 1.0, inverse_near)
    factor = factor * tl.where(outer, 1.0, phi)
    slope = tail_far - tail_near
    d_log_scale = near * tail_near - far * tail_far - tl.where(outer, 0.0, d_width)
    return exponent, factor, tl.where(z < 0, -slope, slope), d_log_scale


@triton.jit
def colour_gaussian(distance, log_scale, inverse_scale, noise):
    """Like colour_density, for a Gaussian of variance v = noise^2 + s^2. noise: and its logarithm.

    With q = noise / s, v = s^2 (1 + q^2), which does not overflow at any scale.
    """
    z = distance * inverse_scale
    ratio = noise[0] * inverse_scale
    share = 1.0 / (1.0 + ratio * ratio)  # s^2 / v
    scaled = z * share
    square = scaled * z  # (x - mean)^2 / v
    noisy = ratio > 1
    exponent = -0.5 * square - tl.where(noisy, noise[1], log_scale)
    factor = NORMAL_PEAK * tl.sqrt(share) * tl.where(noisy, ratio, 1.0)
    return exponent, factor, -scaled, share * (square - 1.0)


@triton.jit
def colour_terms(x, mean, raw_log_scale, noise, LIKELIHOOD: tl.constexpr):
    """p = factor exp(exponent) of one colour, 0.02 < factor <= 1, and the derivatives of log p with
    respect to x and the raw log-scale. All are (BLOCK_P, BLOCK_K), except x (BLOCK_P, 1)."""
    clamped = raw_log_scale < MIN_LOG_SCALE
    log_scale = tl.where(clamped, MIN_LOG_SCALE, raw_log_scale)
    inverse_scale, _ = exp_pair(-log_scale)
    if LIKELIHOOD == "discretized":
        exponent, factor, slope, d_scale = colour_mass(x, x - mean, log_scale, inverse_scale)
    elif LIKELIHOOD == "gaussian":
        exponent, factor, slope, d_scale = colour_gaussian(
            x - mean, log_scale, inverse_scale, noise
        )
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
def byte_of(x):
    """The integer nearest to (x + 1) 127.5, as a float; NaN for NaN."""
    return ((x + 1.0) * 127.5 + ROUND) - ROUND
