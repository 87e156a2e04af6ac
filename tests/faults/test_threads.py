"""Threads that are missing: those that the system does not give, and those of a forked process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dsmooth import ModelConfig, PixelCNNpp, round_to_bytes
from dsmooth.functional import use_impl
from dsmooth.sampling import CachedSampler, cached
from dsmooth.work import map_parts

STACK = 1 << 30  # a limit on stacks, which is then what a thread takes of the address space
SECONDS = 120  # after which a process waits for ever, on a busy machine too


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")
def test_the_same_images_with_the_threads_that_can_be_started() -> None:
    """A team with a lane missing waited for ever at its first barrier."""

    def limit() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_STACK)
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, most))

    result = subprocess.run(
        [sys.executable, __file__, "draw_with_few_threads"],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
        check=False,
    )
    assert result.stdout == "the same images\n", result.stderr


def test_a_forked_process_computes_what_its_parent_does(tmp_path: Path) -> None:
    """OpenMP's threads were not there, and the child waited for them for ever."""
    from tests.helpers.rank_processes import RUN, ForkedPython, wait_for_all  # not for __main__

    process = ForkedPython(RUN.format(__file__), ["fork_in_two_ways"], tmp_path)
    (output,) = wait_for_all([process])
    assert output.splitlines() == ["before 2 threads", "os.fork 0", "next to a sampler 0"]


def test_a_process_may_end_while_a_daemon_thread_draws() -> None:
    """Python unwinds a thread that asks for the GIL then, and the process aborted."""
    result = subprocess.run(
        [sys.executable, __file__, "end_while_drawing"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_who_leaves_does_not_wait_for_the_parts_at_work() -> None:
    """They may take a minute."""
    release, finished = threading.Event(), []

    def work(part: int) -> None:
        if part:
            release.wait(SECONDS)
            finished.append(part)

    values = map_parts(work, range(torch.get_num_threads() + 1))
    next(values)
    values.close()
    assert finished == []
    release.set()


def make_model() -> PixelCNNpp:
    torch.manual_seed(0)
    config = ModelConfig(n_filters=8, n_resnet=1, n_mix=2, dropout=0.0, likelihood="discretized")
    return PixelCNNpp(config).eval()


def draw(model: PixelCNNpp, count: int, threads: int) -> Tensor:
    return CachedSampler(model).sample(count, height=8, width=8, threads=threads)


def draw_with_few_threads() -> None:
    """Draw with eight threads where the system gives this process one or two."""
    model, counts = make_model(), (2, 8)  # four threads an image, and one
    expected = [draw(model, n, 1) for n in counts]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 5 * STACK // 2
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert all(torch.equal(draw(model, n, 8), x) for n, x in zip(counts, expected, strict=True))
    print("the same images")


def end_while_drawing() -> None:
    """End this thread once another has drawn for a while."""
    drawing = threading.Event()
    sampler = CachedSampler(make_model())
    cached.advance_to = lambda _: drawing.set()
    options = {"height": 8, "width": 8, "threads": 2}
    threading.Thread(target=sampler.sample, args=(10**6,), kwargs=options, daemon=True).start()
    assert drawing.wait(SECONDS)


def compute(model: PixelCNNpp) -> list[Tensor]:
    """Samples, and a loss and its gradient, large enough for torch to share out."""
    x = round_to_bytes(torch.linspace(-1, 1, 16 * 32 * 32).view(16, 1, 32, 32))
    with use_impl("native"):
        loss = model.log_prob(x).sum()
    return [draw(model, 4, 2), loss.detach(), *torch.autograd.grad(loss, [model.head.bias])]


def fork(model: PixelCNNpp, expected: list[Tensor]) -> int:
    """The exit status of a child that computes the same; its alarm ends one that waits for ever.

    Samples are equal bit by bit; sums but for their order, which the number of threads decides.
    """
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        try:
            images, *sums = compute(model)
            close = all(torch.allclose(*ab, 1e-4) for ab in zip(sums, expected[1:], strict=True))
            os._exit(not (torch.equal(images, expected[0]) and close))
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_in_two_ways() -> None:
    """Forked processes compute what their parent does, after it computed with two threads."""
    torch.set_num_threads(2)
    model, done = make_model(), threading.Event()
    child = os.fork()
    if not child:
        os._exit(torch.get_num_threads())
    print("before", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "threads")
    expected = compute(model)
    print("os.fork", fork(model, expected))

    def draw_on() -> None:
        while not done.is_set():
            draw(model, 4, 2)

    thread = threading.Thread(target=draw_on)
    thread.start()
    print("next to a sampler", fork(model, expected))
    done.set()
    thread.join()
    assert torch.get_num_threads() == 2


if __name__ == "__main__":
    globals()[sys.argv[1]]()
