"""Draw samples: `python sample.py --sampler ode`; `python sample.py --help` lists the options."""

import sys

from diffusion.commands.app import command, sample

if __name__ == "__main__":
    sys.exit(command(sample))
