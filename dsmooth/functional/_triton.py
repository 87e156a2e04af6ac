"""Whether Triton kernels can run on a tensor, without importing Triton before it is needed."""

from __future__ import annotations

import importlib.util

import torch

MIN_CAPABILITY = (8, 0)


@torch.compiler.assume_constant_result
def triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot compute on tensors of this device and dtype; None if they can.

    Where the kernels are interpreted (TRITON_INTERPRET=1 before Triton was imported) they run on
    CPU tensors, slowly: for tests.
    """
    if device.type not in ("cuda", "cpu"):
        return f"Triton kernels run on cuda tensors, got {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from ..kernels.taps import INTERPRETED

    if INTERPRETED:
        if dtype == torch.bfloat16:
            return "Triton's interpreter multiplies bfloat16 matrices wrongly"
        return None if device.type == "cpu" else "the kernels are interpreted, on cpu tensors alone"
    if device.type == "cpu":
        return "Triton kernels run on cuda tensors, got cpu (TRITON_INTERPRET=1 interprets them)"
    if dtype == torch.float64:
        return "the Triton kernels compute in float32, bfloat16 and float16, got torch.float64"
    if torch.version.hip is not None:
        return "the Triton kernels were made for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"the Triton kernels need compute capability 8.0, got {capability}"
    return None
