"""`python benchmarks`; see command.py."""

import sys
from pathlib import Path

# Last, so that an installed dsmooth is found before the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.command import main

sys.exit(main())
