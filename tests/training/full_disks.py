"""Trains as `train.py ARGUMENT...`, with few points in a validation: `full_disks.py ARGUMENT...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from quick_runs import few_points

from diffusion.commands import app
from diffusion.commands.train.train import train

if __name__ == "__main__":
    few_points.start()
    sys.exit(app.command(train, sys.argv[1:]))
