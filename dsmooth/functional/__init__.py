"""Functional ops: each has a PyTorch reference (impl="reference"), most also faster code.

A public function checks its arguments and calls the one whose name ends in `_inner`, which checks
nothing: networks, whose input was checked, call that.
"""

from .dispatch import Impl, use_impl
from .gated_resnet import gated_resnet
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
    shifted_conv_transpose2d,
)

__all__ = [
    "Impl",
    "Shift",
    "concat_elu",
    "down_shift",
    "gated_resnet",
    "logistic_mixture_log_prob",
    "logistic_mixture_log_prob_ref",
    "logistic_mixture_sample",
    "right_shift",
    "shifted_conv2d",
    "shifted_conv_transpose2d",
    "use_impl",
]
