"""The logistic mixture's log-likelihood and its gradient in one pass over the parameters.

A program owns BLOCK_P neighbouring pixels of an image and all K components of each. Its tiles are
(BLOCK_P, BLOCK_K), where BLOCK_K is the smallest power of two >= K. Every parameter of a component
is read once and every derivative is written once. The logits of atoms come in tiles of the same
shape and are read again for each use, from the cache: so registers suffice for any number of them.
Equations: docs/math.md, section 2. Arithmetic is float32 for every dtype.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from .geometry import cdiv
from .launch import launch
from .mixture_terms import LARGE_LOGIT, byte_of, colour_terms, tanh_pair


@triton.jit
def load_group(ptrs, mask, stride_k, group: tl.constexpr, N_MIX: tl.constexpr):
    """The K parameters of a group, (BLOCK_P, BLOCK_K) in float32, padded with 0."""
    return tl.load(ptrs + group * N_MIX * stride_k, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_group(ptrs, value, mask, stride_k, group: tl.constexpr, N_MIX: tl.constexpr):
    """Write a group in the layout of `load_group`."""
    tl.store(ptrs + group * N_MIX * stride_k, value.to(ptrs.dtype.element_ty), mask=mask)


@triton.jit
def load_atoms(ptrs, mask_p, stride_k, first, N_ATOMS: tl.constexpr, BLOCK_K: tl.constexpr):
    """The logits of atoms first .. of every pixel, (BLOCK_P, BLOCK_K) in float32, padded with -inf;
    and their bytes, (1, BLOCK_K), as floats. ptrs: pointers for first = 0."""
    atom = first + tl.arange(0, BLOCK_K)[None, :]
    mask = mask_p[:, None] & (atom < N_ATOMS)
    logit = tl.load(ptrs + first * stride_k, mask=mask, other=float("-inf")).to(tl.float32)
    return logit, atom.to(tl.float32)


@triton.jit
def log_prob_kernel(
    x_ptr,  # (B, C, H, W)
    params_ptr,  # (B, P, H, W)
    log_prob_ptr,  # (B, H, W), contiguous, float32
    grad_x_ptr,  # (B, C, H, W), contiguous; or None
    grad_params_ptr,  # (B, P, H, W), or None
    pixels,  # H W
    x_strides,  # image, channel, column; rows are adjacent: an image is one long row
    params_strides,
    grad_strides,  # of grad_params
    blocks,  # programs per image
    noise,  # standard deviation and its logarithm; only for "gaussian"
    N_MIX: tl.constexpr,
    CHANNELS: tl.constexpr,
    LIKELIHOOD: tl.constexpr,
    N_ATOMS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    image = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    offs_p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    mask_p = offs_p < pixels
    mask_k = offs_k < N_MIX
    mask = mask_p[:, None] & mask_k[None, :]  # (BLOCK_P, BLOCK_K), like all tiles
    x_ptrs = x_ptr + image * x_strides[0] + offs_p[:, None] * x_strides[2]
    ptrs = params_ptr + image * params_strides[0]
    ptrs = ptrs + offs_p[:, None] * params_strides[2] + offs_k[None, :] * params_strides[1]

    # The channels of a pixel are groups of K: logits; per colour means, log-scales and, for RGB,
    # coefficients. The logits of atoms lie between the first group and the others.
    logit = load_group(ptrs, mask, params_strides[1], 0, N_MIX)
    atom_ptrs = ptrs + N_MIX * params_strides[1]
    ptrs = ptrs + N_ATOMS * params_strides[1]
    x0 = tl.load(x_ptrs, mask=mask_p[:, None], other=0.0).to(tl.float32)
    mean0 = load_group(ptrs, mask, params_strides[1], 1, N_MIX)
    scale0 = load_group(ptrs, mask, params_strides[1], 2, N_MIX)
    exponent, factor, d_x0, d_scale0 = colour_terms(x0, mean0, scale0, noise, LIKELIHOOD)
    if CHANNELS == 3:
        x1 = tl.load(x_ptrs + x_strides[1], mask=mask_p[:, None], other=0.0).to(tl.float32)
        x2 = tl.load(x_ptrs + 2 * x_strides[1], mask=mask_p[:, None], other=0.0).to(tl.float32)
        green_red, d_green_red = tanh_pair(load_group(ptrs, mask, params_strides[1], 3, N_MIX))
        mean1 = load_group(ptrs, mask, params_strides[1], 4, N_MIX) + green_red * x0
        scale1 = load_group(ptrs, mask, params_strides[1], 5, N_MIX)
        blue_red, d_blue_red = tanh_pair(load_group(ptrs, mask, params_strides[1], 6, N_MIX))
        mean2 = load_group(ptrs, mask, params_strides[1], 7, N_MIX)
        scale2 = load_group(ptrs, mask, params_strides[1], 8, N_MIX)
        blue_green, d_blue_green = tanh_pair(load_group(ptrs, mask, params_strides[1], 9, N_MIX))
        mean2 = mean2 + blue_red * x0 + blue_green * x1
        exponent1, factor1, d_x1, d_scale1 = colour_terms(x1, mean1, scale1, noise, LIKELIHOOD)
        exponent2, factor2, d_x2, d_scale2 = colour_terms(x2, mean2, scale2, noise, LIKELIHOOD)
        exponent = exponent + exponent1 + exponent2
        factor = factor * factor1 * factor2  # > 1e-5: scaling a sum by exponents is enough

    # log sum_k pi_k p_k = log sum_k factor_k e^(logit_k + exponent_k) - log sum_k e^logit_k, where
    # an atom has p = 1 at its byte and 0 elsewhere.
    logit = tl.where(mask_k[None, :], logit, float("-inf"))
    top_logit = logit
    if N_ATOMS > 0:
        byte = byte_of(x0)
        atom_here = tl.full(logit.shape, float("-inf"), tl.float32)
        for first in range(0, N_ATOMS, BLOCK_K):
            atom_logit, atom = load_atoms(
                atom_ptrs, mask_p, params_strides[1], first, N_ATOMS=N_ATOMS, BLOCK_K=BLOCK_K
            )
            top_logit = tl.maximum(top_logit, atom_logit)
            atom_here = tl.where(atom == byte, atom_logit, atom_here)
    max_logit = tl.max(top_logit, axis=1)[:, None]
    # A large logit would round the exponent away; the sums of small ones do not change.
    shift = tl.where(tl.abs(max_logit) > LARGE_LOGIT, max_logit, 0.0)
    joint = (logit - shift) + exponent
    top_joint = joint
    if N_ATOMS > 0:
        atom_joint = atom_here - shift  # -inf except at the only atom with p > 0
        top_joint = tl.maximum(top_joint, atom_joint)
    max_joint = tl.max(top_joint, axis=1)[:, None]
    weight = tl.exp(logit - max_logit)
    responsibility = factor * tl.exp(joint - max_joint)
    all_weight, all_joint = weight, responsibility
    if N_ATOMS > 0:
        atom_responsibility = tl.exp(atom_joint - max_joint)
        all_joint += atom_responsibility
        for first in range(0, N_ATOMS, BLOCK_K):
            atom_logit, _ = load_atoms(
                atom_ptrs, mask_p, params_strides[1], first, N_ATOMS=N_ATOMS, BLOCK_K=BLOCK_K
            )
            all_weight += tl.exp(atom_logit - max_logit)
    sum_weight = tl.sum(all_weight, axis=1)[:, None]
    sum_joint = tl.sum(all_joint, axis=1)[:, None]
    log_prob = (max_joint - (max_logit - shift)) + (tl.log(sum_joint) - tl.log(sum_weight))
    log_prob_ptrs = log_prob_ptr + image * pixels + offs_p[:, None]
    tl.store(log_prob_ptrs, log_prob, mask=mask_p[:, None])
    responsibility = responsibility / sum_joint

    if grad_params_ptr is not None:
        grads = grad_params_ptr + image * grad_strides[0]
        grads = grads + offs_p[:, None] * grad_strides[2] + offs_k[None, :] * grad_strides[1]
        d_logit = responsibility - weight / sum_weight
        store_group(grads, d_logit, mask, grad_strides[1], 0, N_MIX)
        if N_ATOMS > 0:
            atom_responsibility = atom_responsibility / sum_joint
            for first in range(0, N_ATOMS, BLOCK_K):
                atom_logit, atom = load_atoms(
                    atom_ptrs, mask_p, params_strides[1], first, N_ATOMS=N_ATOMS, BLOCK_K=BLOCK_K
                )
                d_atom = tl.where(atom == byte, atom_responsibility, 0.0)
                d_atom -= tl.exp(atom_logit - max_logit) / sum_weight
                tl.store(
                    grads + (N_MIX + first) * grad_strides[1],
                    d_atom.to(grads.dtype.element_ty),
                    mask=mask_p[:, None] & (first + offs_k < N_ATOMS)[None, :],
                )
        grads = grads + N_ATOMS * grad_strides[1]
        store_group(grads, -responsibility * d_x0, mask, grad_strides[1], 1, N_MIX)
        store_group(grads, responsibility * d_scale0, mask, grad_strides[1], 2, N_MIX)
        if CHANNELS == 3:
            d_mean1 = -responsibility * d_x1
            d_mean2 = -responsibility * d_x2
            store_group(grads, d_mean1 * x0 * d_green_red, mask, grad_strides[1], 3, N_MIX)
            store_group(grads, d_mean1, mask, grad_strides[1], 4, N_MIX)
            store_group(grads, responsibility * d_scale1, mask, grad_strides[1], 5, N_MIX)
            store_group(grads, d_mean2 * x0 * d_blue_red, mask, grad_strides[1], 6, N_MIX)
            store_group(grads, d_mean2, mask, grad_strides[1], 7, N_MIX)
            store_group(grads, responsibility * d_scale2, mask, grad_strides[1], 8, N_MIX)
            store_group(grads, d_mean2 * x1 * d_blue_green, mask, grad_strides[1], 9, N_MIX)

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


def log_prob_tiling(n_mix: int, channels: int, likelihood: str) -> tuple[int, int, int]:
    """(block_p, block_k, num_warps): the size of the tiles, and the warps that share them.

    For RGB about 20 tiles are live at a time. With 4 elements of each per thread, the discretized
    likelihood spills registers.
    """
    numbers, num_warps = (2, 8) if channels == 3 and likelihood == "discretized" else (4, 4)
    block_k = triton.next_power_of_2(n_mix)
    num_warps = min(32, max(num_warps, block_k // (32 * numbers)))
    return max(1, 32 * numbers * num_warps // block_k), block_k, num_warps


def log_prob(
    x: Tensor,
    params: Tensor,
    log_prob: Tensor,
    grad_x: Tensor | None,
    grad_params: Tensor | None,
    likelihood: str,
    atoms: bool = False,
    smoothing_scale: float = 0.0,
) -> None:
    """Write log_prob, and the gradients of its sum into those tensors that are not None.

    x: (B, C, H, W) and params (B, P, H, W), float32 or shorter, with any strides. log_prob:
    (B, H, W) float32, contiguous. grad_x: as x, contiguous. grad_params: as params, contiguous or
    channels_last.
    """
    batch, channels, height, width = x.shape
    x, params = map(_with_adjacent_rows, (x, params))
    n_atoms = 256 if atoms else 0
    n_mix = (params.shape[1] - n_atoms) // (3 if channels == 1 else 10)
    block_p, block_k, num_warps = log_prob_tiling(n_mix, channels, likelihood)
    blocks = cdiv(height * width, block_p)
    strides = [
        (0, 0, 0) if tensor is None else (*tensor.stride()[:2], tensor.stride(3))
        for tensor in (x, params, grad_params)
    ]
    launch(
        log_prob_kernel, (batch * blocks,), x.device,
        x_ptr=x, params_ptr=params, log_prob_ptr=log_prob, grad_x_ptr=grad_x,
        grad_params_ptr=grad_params, pixels=height * width, blocks=blocks,
        x_strides=strides[0], params_strides=strides[1], grad_strides=strides[2],
        noise=(smoothing_scale, math.log(smoothing_scale) if likelihood == "gaussian" else 0.0),
        N_MIX=n_mix, CHANNELS=channels, LIKELIHOOD=likelihood, N_ATOMS=n_atoms,
        BLOCK_P=block_p, BLOCK_K=block_k, num_warps=num_warps,
    )  # fmt: skip


def _with_adjacent_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied if its rows do not follow each other at the distance of its columns."""
    adjacent = tensor.stride(-2) == tensor.shape[-1] * tensor.stride(-1)
    return tensor if adjacent else tensor.contiguous()
