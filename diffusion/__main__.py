"""`python -m diffusion COMMAND`: train, sample, evaluate, compare."""

import sys

from .commands.app import command
from .commands.dispatch import main

if __name__ == "__main__":
    sys.exit(command(main))
