"""few_threads.py: draw with eight threads where the system gives this process one or two.

Started with a limit of 1 GiB on stacks, which is then what a thread takes of the address space.
"""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from dsmooth import ModelConfig, PixelCNNpp
from dsmooth.sampling import CachedSampler

STACK = 1 << 30


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = PixelCNNpp(
        ModelConfig(n_filters=4, n_resnet=1, n_mix=2, dropout=0.0, likelihood="discretized")
    )
    sampler = CachedSampler(model)
    counts = (2, 8)  # four threads an image, and one
    expected = [sampler.sample(n, height=8, width=8, threads=1) for n in counts]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 5 * STACK // 2
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for n, x in zip(counts, expected, strict=True):
        assert torch.equal(sampler.sample(n, height=8, width=8, threads=8), x)
    print("the same images")


if __name__ == "__main__":
    main()
