"""The command `dsmooth`, and `python -m dsmooth`: the process of a command, and its end."""

import os
import sys

from .cli import main


def leave() -> None:
    """Run the command and end the process with its status.

    Without Python's own end: it waits for threads at work, which after Ctrl-C may take a minute;
    one of torch's process group may abort it; and it searches all that torch imported for garbage,
    which takes half a second.
    """
    status = main()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave()
