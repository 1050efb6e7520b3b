"""Train a model: `python train.py [--config cifar.yaml] [key=value ...]`; `--help` explains each key."""

import sys

from diffusion.cli import command, train

if __name__ == "__main__":
    sys.exit(command(train))
