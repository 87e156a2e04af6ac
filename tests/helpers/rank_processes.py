"""Processes of dsmooth, as torchrun would start them, forked from a server that has imported torch.

That import takes three seconds of a processor, and a tiny training less than one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType

import pytest

# The command, and a path that finds the package under test whatever the folder holds.
COMMAND = "from dsmooth.__main__ import leave; leave()"
RUN = "import runpy; runpy.run_path({!r}, run_name='__main__')"

_CONTEXT = multiprocessing.get_context("forkserver")
# With what torch imports when it makes its first optimizer.
_CONTEXT.set_forkserver_preload(["torch._dynamo", "dsmooth._C", "dsmooth.cli", "dsmooth.training"])

# The server is a child of the process that started it: a fork of that process starts another.
os.register_at_fork(after_in_child=lambda: setattr(forkserver._forkserver, "_forkserver_pid", None))

# Before the code of a process, in it.
_PREPARE = """
import os, sys
for number, name in enumerate(outputs, 1):
    os.dup2(os.open(name, os.O_WRONLY), number)
os.environ.clear()
os.environ.update(variables)
os.chdir(folder)
sys.argv[:] = ["-c", *arguments]
"""


class ForkedPython:
    """`python -c CODE ARGUMENTS` in a folder, with the variables of this process and some more."""

    def __init__(
        self,
        code: str,
        arguments: Sequence[str],
        folder: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._outputs = [Path(tempfile.mkstemp()[1]) for _ in range(2)]
        given = {
            "__name__": "__main__",
            "arguments": list(arguments),
            "folder": str(folder),
            "variables": {**os.environ, **(variables or {})},
            "outputs": list(map(str, self._outputs)),
        }
        work = _PREPARE + code, given
        self._process = _CONTEXT.Process(target=exec, args=work, daemon=True)
        # A server imports what its folder holds before what is installed, which has the extension,
        # and each of its children runs the script of the process that started it.
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tempfile.gettempdir())
            patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
            self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end; what was written to stdout and to stderr."""
        self._process.join(timeout)
        ended = self._process.exitcode is not None
        if not ended:
            self.kill()
            self._process.join()
        output, errors = (path.read_text() for path in self._outputs)
        for path in self._outputs:
            path.unlink()
        assert ended, (output, errors)
        return output, errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(
    size: int, arguments: Sequence[str], folder: Path, code: str = COMMAND
) -> list[ForkedPython]:
    """Start `size` ranks of `dsmooth` with these arguments, or of other code."""
    common = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    return [
        ForkedPython(
            code, arguments, folder, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(size)
    ]


def wait_for_all(processes: Sequence[ForkedPython]) -> list[str]:
    """They end well; what each of them wrote to stdout."""
    outputs = []
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        outputs.append(output)
    return outputs
