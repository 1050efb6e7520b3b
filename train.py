"""Train a model: `python train.py [--config cifar.yaml] [key=value ...]`; `--help` explains each key."""

from diffusion.cli import command, train
from diffusion.processes import end

if __name__ == "__main__":
    end(command(train))
