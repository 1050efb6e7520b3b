"""What is told before torch is loaded is what the parts themselves would tell."""

import subprocess
import sys

import pytest

from diffusion import samplers
from diffusion.config import load_config
from diffusion.errors import UserError
from diffusion.preflight import SAMPLERS, check

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


def test_the_samplers_are_those_that_there_are():
    assert set(SAMPLERS) == set(samplers.names())


def test_a_wrong_sampler_is_told_without_torch(tmp_path):
    code = "import sys; from diffusion.cli import command, train; code = command(train, sys.argv[1:]); "
    code += "sys.exit(1 if 'torch' in sys.modules else code)"
    done = subprocess.run([sys.executable, "-c", code, "sampling.sampler=odee"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 2, done.stderr
