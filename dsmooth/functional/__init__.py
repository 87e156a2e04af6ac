"""Ops as functions: each in plain PyTorch (impl="reference"), and most in faster ways too."""

from .dispatch import Impl as Impl
from .dispatch import use_impl as use_impl
from .gated_resnet import gated_resnet as gated_resnet
from .logistic_mixture import logistic_mixture_log_prob as logistic_mixture_log_prob
from .logistic_mixture import logistic_mixture_log_prob_ref as logistic_mixture_log_prob_ref
from .logistic_mixture import logistic_mixture_sample as logistic_mixture_sample
from .shifted_conv import Shift as Shift
from .shifted_conv import concat_elu as concat_elu
from .shifted_conv import down_shift as down_shift
from .shifted_conv import right_shift as right_shift
from .shifted_conv import shifted_conv2d as shifted_conv2d
from .shifted_conv import shifted_conv_transpose2d as shifted_conv_transpose2d
