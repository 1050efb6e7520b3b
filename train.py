"""Train a model: `python train.py [--config cifar.yaml] [key=value ...]`; `--help` explains each key."""

from diffusion.commands.app import command
from diffusion.commands.train.train import train
from diffusion.processes import end

if __name__ == "__main__":
    end(command(train))
