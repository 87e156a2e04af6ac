"""The Triton kernels of a source tree: the folder `kernels/` at its top, as `dsmooth.kernels`.

An installation has that folder in the place of this file (setup.py), and Python takes a folder
before a file of the same name.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "kernels")]
