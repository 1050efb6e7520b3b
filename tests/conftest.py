"""Shared by all tests: `laws.py` can be imported from any folder."""

import sys
from pathlib import Path

# pytest puts the folder of a test on the path, not the folders above it.
sys.path.insert(0, str(Path(__file__).parent))
