"""The runs of test_distributed.py in one launch, a program for `ranks.py`: `two_processes.py FOLDER NAME [again]`."""

import shutil
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from quick_runs import quick_runs
from tiny_configs import digits_config, toy_config

from diffusion.processes import end

STEPS, HALF = 10, 5
COMMON = ("optimizer.decay=constant", "trainer.validate_every=5", "trainer.checkpoint_every=5", "trainer.keep_last=9")
TOY = (*COMMON, "trainer.sample_every=5")
DIGITS = (*COMMON, "trainer.sample_every=5", "denoiser.conditional=true")
RUNS = {"toy": (toy_config, TOY), "digits": (digits_config, DIGITS)}


def config_of(name, folder, strategy="ddp"):
    """The configuration of a run of `toy` or `digits`."""
    make, own = RUNS[name]
    return make(folder, *own, f"trainer.steps={STEPS}", f"trainer.strategy={strategy}", f"name={name}")


def cut(run, target):
    """Make a run folder as `run` was after the first half of its steps; returns its path."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("*.ckpt", "model.safetensors"))
    shutil.copy(run / "checkpoints" / f"step-{HALF:08d}.ckpt", target / "checkpoints" / "last.ckpt")
    return target


def main(folder, name, again):
    from diffusion.training.distributed.launch import agree
    from diffusion.training.fit import fit

    torch.set_num_threads(1)
    quick_runs.start()
    for strategy in ("ddp", "sharded"):
        done = fit(config_of(name, folder / strategy, strategy))
        if again:  # what two have saved, two continue
            target = folder / strategy / "again"
            fit(config_of(name, folder, strategy), Path(agree(str(cut(done.run, target) if done.is_main else target))))


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    main(Path(sys.argv[1]), sys.argv[2], "again" in sys.argv[3:])
    end(0)
