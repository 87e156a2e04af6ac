"""Settings that every test shares."""

from __future__ import annotations

import torch

# The tests' tensors are too small to share among threads; on a busy machine sharing makes them
# wait for each other. Tests about thread counts set their own.
torch.set_num_threads(1)
