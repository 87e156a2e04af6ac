"""Ops as functions: a plain PyTorch reference (`*_ref`) each, and most also faster ones."""

from .dispatch import Impl, use_impl
from .gated_resnet import gated_resnet, gated_resnet_ref
from .logistic_mixture import (
    logistic_mixture_log_prob,
    logistic_mixture_log_prob_ref,
    logistic_mixture_sample,
)
from .shifted_conv import (
    Shift,
    concat_elu,
    down_shift,
    right_shift,
    shifted_conv2d,
    shifted_conv2d_ref,
    shifted_conv_transpose2d,
    shifted_conv_transpose2d_ref,
)

__all__ = [
    "Impl",
    "Shift",
    "concat_elu",
    "down_shift",
    "gated_resnet",
    "gated_resnet_ref",
    "logistic_mixture_log_prob",
    "logistic_mixture_log_prob_ref",
    "logistic_mixture_sample",
    "right_shift",
    "shifted_conv2d",
    "shifted_conv2d_ref",
    "shifted_conv_transpose2d",
    "shifted_conv_transpose2d_ref",
    "use_impl",
]
