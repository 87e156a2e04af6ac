"""A training step as a CUDA graph: recorded once, then replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..config import TrainConfig
from ..fields import SettingError

# Calls that run as they are before one is recorded as a CUDA graph: they choose algorithms and
# compile kernels, neither of which may happen while a graph is recorded.
WARM_UP = 3


def uses_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether the steps of a run are replayed. Raises ValueError if they must be and cannot."""
    if config.graph == "on" and device.type != "cuda":
        words = f"cannot be on: it needs a CUDA device, and this run computes on {device.type}"
        raise SettingError("graph", f"{words}; use auto or off")
    return config.graph != "off" and device.type == "cuda"


class ReplayedStep:
    """Runs `step` WARM_UP times on a side stream, then records it as a CUDA graph and replays."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.calls = 0
        # One stream for all calls and the recording: torch keeps freed memory for each.
        self.side = torch.cuda.Stream(device)
        self.graph = torch.cuda.CUDAGraph()

    def __call__(self) -> None:
        """One step, on the current stream."""
        self.calls += 1
        with torch.cuda.device(self.device):
            if self.calls <= WARM_UP:
                current = torch.cuda.current_stream()
                self.side.wait_stream(current)
                with torch.cuda.stream(self.side):
                    self.step()
                current.wait_stream(self.side)
                return
            if self.calls == WARM_UP + 1:
                # Other threads, such as NCCL's, may call CUDA meanwhile.
                with torch.cuda.graph(
                    self.graph, stream=self.side, capture_error_mode="thread_local"
                ):
                    self.step()
            self.graph.replay()
