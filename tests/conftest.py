"""Shared by all tests: `laws.py` can be imported from any folder; one thread, which is fastest for small tensors."""

import os
import sys
from pathlib import Path

import pytest
import torch

# pytest puts the folder of a test on the path, not the folders above it.
sys.path.insert(0, str(Path(__file__).parent))
# Threads that wait for each other on a busy machine make the suite several times slower.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory):
    """What tests keep is theirs, also that of the programs they start; torch's own downloads stay where they are."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", os.environ.get("TORCH_HOME") or str(home / "torch"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
