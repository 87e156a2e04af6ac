"""A step as one CUDA graph: recorded once, then replayed by a single launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..config import TrainConfig
from ..distributed import rank_and_size

# Calls that run as they are before one is recorded: they make the optimiser's state, choose
# algorithms and compile kernels, none of which may happen while a graph is recorded.
WARM_UP = 3


def graph_obstacle(config: TrainConfig, device: torch.device) -> str | None:
    """Why the steps of a run cannot be replayed as a CUDA graph; None if they can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and this run computes on {device.type}"
    if rank_and_size()[1] > 1:
        return "several processes exchange gradients in every step, which is not recorded"
    if config.compile:
        return "compile=True launches kernels of its own, which are not recorded"
    return None


def uses_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether the steps of a run are replayed. Raises ValueError if they must be and cannot."""
    obstacle = graph_obstacle(config, device)
    if config.graph == "on" and obstacle is not None:
        raise ValueError(f'graph="on" is not possible: {obstacle}; take "auto" or "off"')
    return config.graph != "off" and obstacle is None


class ReplayedStep:
    """Calls `step`, a function of tensors that stay where they are, and later replays it.

    step: takes and returns nothing, reads nothing back, and sends nothing from the host. The first
    WARM_UP calls run on a side stream, as torch asks of what is to be recorded; the next one is
    recorded. A recording executes nothing, so each call is one step. Source: the section on whole
    networks in torch's notes on CUDA graphs.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self.step = step
        self.device = device
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """One step, on the current stream."""
        with torch.cuda.device(self.device):
            if self.calls < WARM_UP:
                self._warm_up()
            else:
                if self.graph is None:
                    self.graph = self._record()
                self.graph.replay()
        self.calls += 1

    def _warm_up(self) -> None:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.step()
        current.wait_stream(side)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step()
        except RuntimeError as error:
            raise RuntimeError(
                f'a step could not be recorded as a CUDA graph; take graph="off" ({error})'
            ) from error
        return graph
