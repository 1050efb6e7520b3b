"""What is told before torch is loaded is what the parts themselves would tell."""

import subprocess
import sys

import pytest

from diffusion import samplers
from diffusion.config import load_config
from diffusion.errors import UserError
from diffusion.preflight import GRIDS, SAMPLERS, check
from diffusion.schedules import time_grids

CASES = {
    ("digits", "sampling.sampler=odee"): "sampling.sampler: 'odee' is not known; .*Did you mean 'ode'",
    ("digits", "data.name=moons"): r"network.name: found 'unet'; data of shape \(2,\) need mlp",
    ("toy", "data.name=digits"): "network.name: found 'mlp'; images need unet or dit",
    ("mnist", "data.path=/nowhere"): "data.path: /nowhere does not exist",
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_begin_is_refused(case):
    name, override = case
    with pytest.raises(UserError, match=CASES[case]):
        check(load_config(name, [override]))


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar", "toy", "vae-digits", "eae-mnist", "vdm-digits"])
def test_what_is_shipped_is_accepted(name):
    check(load_config(name))


def test_the_names_are_those_that_there_are():
    assert set(SAMPLERS) == set(samplers.names())
    assert set(GRIDS) == {*time_grids.names(), time_grids.AUTO}


WITHOUT_TORCH = {
    "train": ["train", "sampling.sampler=odee"],
    "sample --sampler": ["sample", "--sampler", "odee"],
    "sample --grid": ["sample", "--grid", "atuo"],
    "sample --run": ["sample", "--run", "nope"],
    "sample --device": ["sample", "--device", "gpu"],
    "sample --from": ["sample", "--from", "nope.png"],
    "sample --inpaint": ["sample", "--inpaint", "nope.png", "--mask", "nope.png"],
    "sample --classifier": ["sample", "--classifier", "nope", "--label", "3"],
    "sample --classifier, no label": ["sample", "--classifier", "digits"],
    "sample --classifier --guide": ["sample", "--classifier", "digits", "--label", "3", "--guide", "x"],
    "sample --out": ["sample", "--out", "/dev/null/x.png"],
    "evaluate": ["evaluate", "nope"],
    "evaluate --device": ["evaluate", "pretrained:digits", "--device", "gpu"],
    "compare": ["compare", "pretrained:digitz"],
}


@pytest.mark.parametrize("case", WITHOUT_TORCH)
def test_what_is_wrong_is_told_without_torch(tmp_path, case):
    code = "import sys; from diffusion.cli import command; from diffusion.commands.dispatch import main; "
    code += "code = command(main, sys.argv[1:]); sys.exit(1 if 'torch' in sys.modules else code)"
    done = subprocess.run(
        [sys.executable, "-c", code, *WITHOUT_TORCH[case]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
