"""Shared by all tests: `laws.py` can be imported from any folder; one thread, which is fastest for small tensors."""

import sys
from pathlib import Path

import torch

# pytest puts the folder of a test on the path, not the folders above it.
sys.path.insert(0, str(Path(__file__).parent))
# Threads that wait for each other on a busy machine make the suite several times slower.
torch.set_num_threads(1)
