"""Likelihood and sampling of pixels under a mixture of logistics or Gaussians.

Parameters of a pixel (Salimans et al., PixelCNN++, 2017), P channels: K mixture logits, then one
logit for each of J atoms, J = 0 or 256; then per colour K means, K log-scales and, for RGB, K
coefficient logits. Their tanh are the coefficients g|r (in red's slot), b|r (green's) and b|g
(blue's), which shift the means:

    mean_g += c_gr x_r        mean_b += c_br x_r + c_bg x_g

One component index serves all colours of a pixel. An atom is a component that puts all its
probability on one byte, for grey images. Equations: docs/math.md, sections 2 and 3.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields import check_floating, check_one_of, check_tensor
from ..pixels import N_BYTES, Atoms, Likelihood, MixtureOptions, byte_of, check_likelihood, value_of
from .dispatch import Impl, choose, resolve_impl, without_autocast
from .logistic_mixture_op import BACKENDS, MixtureCall, MixtureOperands, forward_op, widened

MIN_LOG_SCALE = -7.0
HALF_STEP = 1 / 255  # half the distance between neighbouring bytes in [-1, 1]


def logistic_mixture_log_prob(
    x: Tensor,
    params: Tensor,
    likelihood: Likelihood = "continuous",
    impl: Impl = "auto",
    *,
    atoms: Atoms = (),
    smoothing_scale: float = 0.0,
) -> Tensor:
    """Log-likelihood of every pixel, in nats.

    likelihood: "continuous" gives the log of a density of logistics; "discretized" the log of the
    probability of a byte; "gaussian" the log of a density of Gaussians whose variance is
    smoothing_scale**2 + exp(log_scale)**2, for images with Gaussian noise of that scale.
    x: (B, C, H, W), C = 1 or 3; for "discretized" byte/127.5 - 1 of a byte 0 .. 255, else
    real-valued and never clamped. params: (B, P, H, W) on x's device, P = 3K + J for C = 1 and
    10K for C = 3. atoms: "all" adds J = 256 components, a point mass at each byte; only for
    "discretized" and grey images.
    Returns (B, H, W), summed over colours inside one mixture. Half and bfloat16 inputs are computed
    and returned in float32, also under autocast; each gradient has its input's dtype.
    A NaN in x or in params gives NaN at that pixel.

    impl: "triton" is one kernel for value and gradient, on cuda; "native" the C++ extension, on
    cpu; "reference" plain PyTorch, the only one that can be differentiated twice. "auto" is the
    first of the three that can run, but "triton" only on cuda. "triton" saves the gradient of the
    sum of all log-likelihoods in each input's dtype, so in float16 it must not exceed 65504.

    Raises ValueError for shapes or bytes that do not fit, TypeError for integer tensors, and
    RuntimeError with the reason for an explicit impl that cannot run.
    """
    mixture = _resolved(x, params, likelihood, atoms, smoothing_scale)
    return logistic_mixture_log_prob_inner(x, params, mixture, resolve_impl(impl))


def logistic_mixture_log_prob_inner(
    x: Tensor, params: Tensor, mixture: MixtureOptions, impl: Impl = "auto"
) -> Tensor:
    """`logistic_mixture_log_prob` of checked arguments."""
    operands, name = MixtureOperands(x, params), "logistic_mixture_log_prob"
    chosen = choose(name, impl, x.device, lambda impl: BACKENDS[impl].obstacle(operands))
    if chosen == "reference":
        return _reference(x, params, mixture)
    operands = BACKENDS[chosen].cast(operands)
    needs_x, needs_params = (torch.is_grad_enabled() and t.requires_grad for t in operands)
    atoms, scale = bool(mixture["atoms"]), float(mixture["smoothing_scale"])
    call = MixtureCall(mixture["likelihood"], atoms, scale, chosen, needs_x, needs_params)
    return forward_op(*operands, *call)[0]


def logistic_mixture_log_prob_ref(
    x: Tensor,
    params: Tensor,
    likelihood: Likelihood = "continuous",
    *,
    atoms: Atoms = (),
    smoothing_scale: float = 0.0,
) -> Tensor:
    """The reference of `logistic_mixture_log_prob` in PyTorch, differentiable any number of
    times."""
    return _reference(x, params, _resolved(x, params, likelihood, atoms, smoothing_scale))


def _reference(x: Tensor, params: Tensor, options: MixtureOptions) -> Tensor:
    likelihood, n_atoms = options["likelihood"], N_BYTES if options["atoms"] else 0
    x, params = widened(x, params)
    with without_autocast(x.device.type):
        mixture = Mixture.of(params, x.shape[1], n_atoms)
        means = _conditional_means(mixture, x)
        log_scales = mixture.log_scales.clamp(min=MIN_LOG_SCALE)
        value = x.unsqueeze(2)
        if likelihood == "continuous":
            per_colour = _log_density(value, means, log_scales)  # (B, C, K, H, W)
        elif likelihood == "gaussian":
            per_colour = _log_gaussian(value, means, log_scales, options["smoothing_scale"])
        else:
            per_colour = _log_mass(value, means, log_scales)
        log_weights = F.log_softmax(mixture.logits, dim=1)  # components, then atoms
        joint = log_weights[:, : means.shape[2]] + per_colour.sum(1)
        if n_atoms:
            log_atoms = log_weights[:, means.shape[2] :]
            byte = torch.arange(n_atoms, dtype=x.dtype, device=x.device).view(-1, 1, 1)
            at_byte = torch.round(byte_of(x)) == byte  # (B, J, H, W)
            joint = torch.cat([joint, log_atoms.where(at_byte, -math.inf)], dim=1)
        return torch.logsumexp(joint, dim=1)


def logistic_mixture_sample(
    params: Tensor,
    uniforms: Tensor,
    image_channels: int,
    likelihood: Likelihood = "continuous",
    temperature: float = 1.0,
    *,
    atoms: Atoms = (),
    smoothing_scale: float = 0.0,
) -> Tensor:
    """Sample every pixel from its mixture, as a function of four uniforms per pixel.

    params: (B, P, H, W) float. uniforms: (B, 4, H, W) in (0, 1). The first selects a component or
    an atom by the cumulative softmax. The others give x_c = mean_c + scale_c * logit(u_c), for
    "gaussian" mean_c + sqrt(smoothing_scale**2 + scale_c**2) * ndtri(u_c). Colours are sampled in
    order, and each shifts the means of the next ones. With "discretized" a colour is clamped to
    [-1, 1] and rounded to the nearest byte before it shifts a mean, and an atom gives its byte.
    Other likelihoods give real-valued pixels, not clamped. temperature > 0 divides the
    logits and multiplies the scales.

    Returns (B, C, H, W), float32 at least. Raises ValueError for arguments that do not fit,
    TypeError for integer tensors.
    """
    check_floating("params", params)
    check_floating("uniforms", uniforms)
    n_atoms = check_likelihood(likelihood, atoms, smoothing_scale, image_channels)
    _check_channels(params, image_channels, n_atoms)
    n_mix = _n_mix(params, image_channels, n_atoms)
    check_tensor("uniforms", uniforms, (params.shape[0], 4, *params.shape[2:]), params.device)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    params, uniforms = widened(params, uniforms)

    mixture = Mixture.of(params, image_channels, n_atoms)
    # The quotient of a logit other than the largest may overflow to minus infinity.
    logits = mixture.logits - mixture.logits.amax(1, keepdim=True)
    temperature = max(temperature, torch.finfo(torch.float32).tiny)
    cumulative = F.softmax(logits / temperature, dim=1).cumsum(1)
    # The last boundary is 1 up to rounding; without it the index stays below K + J.
    chosen = (uniforms[:, :1] >= cumulative[:, :-1]).sum(1, keepdim=True)  # (B, 1, H, W)
    component = chosen.clamp(max=n_mix - 1)
    index = component.unsqueeze(1).expand(-1, image_channels, -1, -1, -1)
    means = mixture.means.gather(2, index).squeeze(2)  # (B, C, H, W)
    scales = mixture.log_scales.gather(2, index).squeeze(2).clamp(min=MIN_LOG_SCALE).exp()
    u = uniforms[:, 1 : 1 + image_channels]
    if likelihood == "gaussian":
        noise = torch.sqrt(scales**2 + smoothing_scale**2) * temperature * torch.special.ndtri(u)
    else:
        noise = scales * temperature * torch.logit(u)

    colours: list[Tensor] = []
    for c in range(image_channels):
        mean = means[:, c]
        if c > 0:
            coefficients = mixture.coefficients.gather(2, index).squeeze(2)
            mean = mean + sum(w * colours[i] for i, w in _mean_shifts(coefficients, c))
        colour = mean + noise[:, c]
        colours.append(snap_to_bytes(colour) if likelihood == "discretized" else colour)
    x = torch.stack(colours, dim=1)
    if atoms:
        x = x.where(chosen < n_mix, value_of((chosen - n_mix).to(x.dtype)))
    return x


def snap_to_bytes(x: Tensor) -> Tensor:
    """Round to the nearest of the 256 values byte/127.5 - 1; any shape."""
    return value_of(byte_of(x.clamp(-1, 1)).round())


class Mixture(NamedTuple):
    """The groups of channels of `params`."""

    logits: Tensor  # (B, K + J, H, W), components, then atoms
    means: Tensor  # (B, C, K, H, W)
    log_scales: Tensor  # (B, C, K, H, W), not clamped
    coefficients: Tensor  # (B, 3, K, H, W) after tanh: g|r, b|r, b|g; (B, 0, K, H, W) for grey

    @classmethod
    def of(cls, params: Tensor, image_channels: int, n_atoms: int = 0) -> Mixture:
        """The groups of params (B, P, H, W); all but the coefficients are views."""
        n_mix = _n_mix(params, image_channels, n_atoms)
        per_colour = 2 if image_channels == 1 else 3
        rest = params[:, n_mix + n_atoms :].unflatten(1, (image_channels, per_colour, n_mix))
        rgb = image_channels == 3
        coefficients = torch.tanh(rest[:, :, 2:].flatten(1, 2)) if rgb else rest[:, :0, 0]
        return cls(params[:, : n_mix + n_atoms], rest[:, :, 0], rest[:, :, 1], coefficients)


def extrapolate(
    start: Tensor, end: Tensor, weight: float, image_channels: int, n_atoms: int = 0
) -> Tensor:
    """Mixture parameters (B, P, H, W) start + weight (end - start), with log-scales of at least -7.

    Lower log-scales are equivalent to -7 and have no derivative. Source: docs/math.md, section 8.
    """
    start, end = start.clone(), end.clone()
    for params in (start, end):
        Mixture.of(params, image_channels, n_atoms).log_scales.clamp_(min=MIN_LOG_SCALE)
    return torch.lerp(start, end, weight)


def _resolved(
    x: Tensor, params: Tensor, likelihood: Likelihood, atoms: Atoms, smoothing_scale: float
) -> MixtureOptions:
    """The options as one; raises ValueError or TypeError unless x and params fit them."""
    check_floating("x", x)
    check_floating("params", params)
    check_tensor("x", x, ("B", "C", "H", "W"))
    n_atoms = check_likelihood(likelihood, atoms, smoothing_scale, x.shape[1])
    _check_channels(params, x.shape[1], n_atoms)
    check_tensor("params", params, (x.shape[0], params.shape[1], *x.shape[2:]), x.device)
    return MixtureOptions(likelihood=likelihood, atoms=atoms, smoothing_scale=smoothing_scale)


def _n_mix(params: Tensor, image_channels: int, n_atoms: int) -> int:
    return (params.shape[1] - n_atoms) // (3 if image_channels == 1 else 10)


def _check_channels(params: Tensor, image_channels: int, n_atoms: int) -> None:
    check_one_of("image_channels", image_channels, (1, 3))
    per_component = 3 if image_channels == 1 else 10
    channels = params.shape[1] - n_atoms if params.ndim == 4 else 0
    if channels < per_component or channels % per_component:
        expected = f"{per_component}K + {n_atoms}" if n_atoms else f"{per_component}K"
        raise ValueError(
            f"params must have shape (B, {expected}, H, W) for {image_channels} image "
            f"channels, got {tuple(params.shape)}"
        )


def _mean_shifts(coefficients: Tensor, colour: int) -> list[tuple[int, Tensor]]:
    """(earlier colour, coefficient) of the terms that shift the mean of a colour of RGB."""
    if colour == 1:
        return [(0, coefficients[:, 0])]
    return [(0, coefficients[:, 1]), (1, coefficients[:, 2])]


def _conditional_means(mixture: Mixture, x: Tensor) -> Tensor:
    """(B, C, K, H, W): the means, shifted by the observed earlier colours."""
    means = list(mixture.means.unbind(1))
    # Each colour is viewed once: that fixes the order of gradient sums.
    seen = [x[:, i : i + 1] for i in range(x.shape[1] - 1)]
    for colour in range(1, x.shape[1]):
        for earlier, coefficient in _mean_shifts(mixture.coefficients, colour):
            means[colour] = means[colour] + coefficient * seen[earlier]
    return torch.stack(means, dim=1)


def _log_density(x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log p = z - log s - 2 softplus(z), with z = (x - mean) / s."""
    z = (x - means) * torch.exp(-log_scales)
    return F.logsigmoid(z) + F.logsigmoid(-z) - log_scales


def _log_gaussian(x: Tensor, means: Tensor, log_scales: Tensor, smoothing_scale: float) -> Tensor:
    """log N(x; mean, smoothing_scale^2 + s^2)."""
    # (e^40)^2 is near the largest float32, so the rest of a larger scale is applied separately.
    wide = log_scales > 40
    rest = torch.where(wide, log_scales - 40, 0)
    variance = smoothing_scale**2 + torch.exp(2 * torch.where(wide, 40, log_scales))
    square = (x - means) ** 2 / variance * torch.exp(-2 * rest)
    return -0.5 * (square + torch.log(2 * math.pi * variance)) - rest


def _log_mass(x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log of the probability of the byte of x; the outer bytes take the tails."""
    inverse_scale = torch.exp(-log_scales)
    a = (x - means + HALF_STEP) * inverse_scale
    b = (x - means - HALF_STEP) * inverse_scale
    # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - e^-D), D = a - b. The argument is clamped: an
    # infinity in the branch that torch.where drops would still make the gradient NaN.
    width = 2 * HALF_STEP * inverse_scale
    tiny = 1e-30
    log_gap = torch.where(
        width > tiny,
        torch.log(-torch.expm1(-width.clamp(min=tiny))),
        math.log(2 * HALF_STEP) - log_scales,
    )
    interior = F.logsigmoid(a) + F.logsigmoid(-b) + log_gap
    return torch.where(
        x < -0.999, F.logsigmoid(a), torch.where(x > 0.999, F.logsigmoid(-b), interior)
    )
