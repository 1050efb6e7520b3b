"""What is wrong is told before a run begins: keys, types, paths and devices without torch, the rest by the parts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_config_errors import REFUSED, REFUSED_ARGUMENTS

from diffusion.commands.app import command
from diffusion.commands.dispatch import COMMANDS
from diffusion.commands.preflight import EXACT_MODELS, FEATURES
from diffusion.commands.train.train import train
from diffusion.config import (
    FAMILIES,
    IMAGE_SETS,
    NETWORKS,
    OBSERVATIONS,
    SAMPLERS,
    SCHEDULES,
    TOY_SETS,
    imported,
    load_config,
    preflight,
)
from diffusion.config.preflight import check, check_device
from diffusion.errors import UserError
from diffusion.models.build import DataFacts
from diffusion.training.modules.build import build_module

ROOT = Path(__file__).parents[2]
CASES = {
    ("digits", "sampling.sampler=odee"): "sampling.sampler: found 'odee'; must be one of ode, .*Did you mean 'ode'",
    ("mnist", "data.path=/nowhere"): "data.path: /nowhere does not exist",
    ("mnist", f"data.path={__file__}"): "data.path: .* is no archive, and no array; accepted: a folder",
    ("vdm-digits", "trainer.strategy=sharded trainer.devices=2"): "trainer.strategy: .*'learned' takes ddp",
    ("vae-digits", "trainer.strategy=sharded"): "trainer.strategy: found 'sharded'; family 'vae' takes ddp",
    (
        "eae-digits",
        "autoencoder.neighbours=64 trainer.devices=2 trainer.batch_size=128",
    ): "must be below .*together, 64",
    ("digits", "trainer.workers=2 data.place=device"): "trainer.workers: found 2; data.place 'device' takes 0",
    ("toy", f"seed={2**64}"): "seed: found 18446744073709551616; must be a whole number of 64 bits",
    ("digits", "name=a:b"): "name: found 'a:b'; letters, digits",
    ("digits", f"runs={__file__}/x"): "runs: .* cannot be made; .* is a file",
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_begin_is_refused(case):
    name, overrides = case
    with pytest.raises(UserError, match=CASES[case]):
        check(load_config(name, overrides.split()))


@pytest.mark.parametrize("key", ["size=8", "bits=12", "unreadable=skip", "cache=kept", "place=device", "flip=true"])
def test_what_is_of_images_or_files_is_not_taken_for_others(key):
    name, _, value = key.partition("=")
    told = rf"data\.{name}: found '?{value}'?; 'gaussians' does not take it"
    with pytest.raises(UserError, match=told):
        check(load_config("toy", [f"data.{key}"]))
    if name in ("bits", "unreadable", "cache"):
        with pytest.raises(UserError, match=told.replace("gaussians", "digits")):
            check(load_config("digits", [f"data.{key}"]))
    check(load_config("toy", ["data.flip=false"]))


FACTS = {
    "digits": DataFacts("digits", (1, 8, 8), 17, 10),
    "cifar": DataFacts("cifar10", (3, 32, 32), 256, 10),
    "toy": DataFacts("moons", (2,), None, 0),
    "small": DataFacts("folder", (1, 7, 7), 256, 0),
    "wide": DataFacts("folder", (3, 32, 48), 256, 0),
}
# What only the parts know, of configurations and of data.
OF_THE_PARTS = {
    ("digits", "toy", ""): r"network.name: found 'unet'; data of shape \(2,\) need mlp",
    ("toy", "digits", ""): r"network.name: found 'mlp'; data of shape \(1, 8, 8\) need unet or dit",
    (
        "toy",
        "toy",
        "denoiser.prediction=levels objective.dequantize=false",
    ): "denoiser.prediction: .* the data '.*' have none",
    ("toy", "toy", "denoiser.conditional=true"): "denoiser.conditional: the data 'moons' have no labels",
    (
        "digits",
        "digits",
        "network.attention=[3]",
    ): "network.attention: no feature map has height 3; .* heights are 8, 4",
    ("cifar", "wide", "network.attention=[7]"): "network.attention: no feature map has height 7; .* 48",
    ("cifar", "cifar", "network.head_channels=48"): "network.head_channels: 48 does not divide the 256 channels",
    ("digits", "digits", "sampling.eta=1"): "sampling.eta: sampler 'abm' does not take it",
    (
        "vdm-digits",
        "digits",
        "objective.weighting=simple",
    ): "objective.weighting: found 'simple'; a learned schedule takes elbo",
    ("vdm-digits", "digits", "objective.time=log-snr"): "objective.time: found 'log-snr'; .* 'learned' takes uniform",
    ("vae-digits", "toy", ""): "family: found 'vae', which models images of levels; 'moons' has none",
    ("vae-digits", "small", ""): r"data.size: found \(1, 7, 7\); accepted: .* H and W at least 8",
    ("vae-digits", "digits", "autoencoder.multipliers=[1,1,1,1,1]"): "autoencoder.multipliers: 5 levels .*at most 4",
    (
        "vae-digits",
        "digits",
        "autoencoder.observation=bernoulli",
    ): "autoencoder.observation: .*2 levels, the data have 17",
}


@pytest.mark.parametrize("case", OF_THE_PARTS)
def test_parts_that_do_not_fit_say_so_by_the_key(case):
    name, data, overrides = case
    with pytest.raises(UserError, match=f"^{OF_THE_PARTS[case]}"):
        build_module(load_config(name, overrides.split()), FACTS[data], {})


def test_parts_that_do_not_fit_are_one_line_and_leave_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(train, ["--config", "digits", "network.attention=[3]", "device=cpu"]) == 2
    assert re.fullmatch(r"error: network.attention: no feature map has height 3; [^\n]*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_gpu_is_asked_of_its_driver(monkeypatch):
    valid = [("cuda", 1), ("cuda:0", 1), ("cuda:1", 2), ("cuda", None), ("cuda:7", None), ("cpu", 0), ("auto", 0)]
    for device, count in valid:
        monkeypatch.setattr(preflight, "_gpu_count", lambda count=count: count)
        check_device(device)
    for device, count in (("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)):
        monkeypatch.setattr(preflight, "_gpu_count", lambda count=count: count)
        with pytest.raises(UserError, match=rf"device: '{device}' does not exist: {count} GPU\(s\) found"):
            check_device(device)


class Driver:
    """NVIDIA's, of so many GPUs; or one that does not start."""

    def __init__(self, count):
        self.count = count

    def cuInit(self, flags):
        return 0 if self.count else 100

    def cuDeviceGetCount(self, found):
        found._obj.value = self.count
        return 0


@pytest.mark.parametrize(("count", "expected"), [(3, 3), (0, 0), (None, 0)])
def test_the_driver_counts_the_gpus(monkeypatch, count, expected):
    def load(name):
        if count is None:
            raise OSError(name)
        return Driver(count)

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", load)
    assert preflight._gpu_count() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_driver_and_torch_count_the_same_gpus():
    assert preflight._gpu_count() == torch.cuda.device_count()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=f"runs: .*{tmp_path.name}/runs cannot be written; .* read-only"):
        check(load_config("digits", [f"runs={tmp_path / 'runs'}"]))
    check(load_config("digits", [f"runs={tmp_path / 'runs'}"]), makes_run=False)


def test_a_full_cache_may_be_read_only_and_an_unused_one_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    check(load_config("mnist", [f"data.cache={tmp_path}"]))
    own = ["data.path=.", f"data.cache={tmp_path}"]
    with pytest.raises(UserError, match=r"data.cache: .* read-only"):
        check(load_config("mnist", own))
    (tmp_path / "key.npy").touch()
    check(load_config("mnist", own))


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar", "toy", "vae-digits", "eae-mnist", "vdm-digits"])
def test_what_is_shipped_is_accepted(name):
    check(load_config(name))


TABLES = (FAMILIES, IMAGE_SETS, NETWORKS, OBSERVATIONS, SAMPLERS, SCHEDULES, TOY_SETS, EXACT_MODELS)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: next(iter(table)))
def test_there_is_something_else_for_every_name_of_a_table(table):
    found = [imported(place) for place in table.values()]
    assert len(set(map(id, found))) == len(table)


WITHOUT_TORCH = {
    "train": ["train", "sampling.sampler=odee"],
    "sample --sampler": ["sample", "--sampler", "odee"],
    "sample --grid": ["sample", "--grid", "atuo"],
    "sample --sampler fitted --steps": ["sample", "--sampler", "fitted", "--steps", "11"],
    "sample --sampler fitted --grid": ["sample", "--sampler", "fitted", "--steps", "5", "--grid", "auto"],
    "sample --sampler fitted --edit": ["sample", "--sampler", "fitted", "--edit", "nope.png"],
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
    "compare --out": ["compare", "pretrained:digits", "--out", "/dev/null"],
    "train runs": ["train", "runs=~no-such-user/x"],
    "sample --out ~": ["sample", "--out=~no-such-user/x.png"],
    "train-features --out, no such file": ["train-features", "digits", "--out", "x.pt"],
    "quality": ["quality", "nope"],
    "quality images": ["quality", "nope.zip", "--data", "digits"],
    "quality, no data": ["quality", "."],
    "quality --data": ["quality", ".", "--data", "digitz"],
    "quality --sampler": ["quality", "pretrained:digits", "--sampler", "odee"],
    "quality --grid": ["quality", "pretrained:digits", "--grid", "atuo"],
    "quality --features": ["quality", "pretrained:digits", "--features", "digitz"],
    "quality --features FILE": ["quality", "pretrained:digits", "--features", "nope.safetensors"],
    "quality --device": ["quality", "pretrained:digits", "--device", "gpu"],
    "tradeoff": ["tradeoff", "nope"],
    "tradeoff exact": ["tradeoff", "exact:mixture"],
    "tradeoff --samplers": ["tradeoff", "exact:mixture-2d", "--samplers", "ode", "odee"],
    "tradeoff --grid": ["tradeoff", "exact:mixture-2d", "--grid", "atuo"],
    "tradeoff --features": ["tradeoff", "pretrained:digits", "--features", "nope.pt"],
    "doctor --device": ["doctor", "--device", "gpu"],
    "train-classifier": ["train-classifier", "digitz", "--out", "x.safetensors"],
    "train-classifier --path": ["train-classifier", "folder", "--path", "nope", "--out", "x.safetensors"],
    "train-features --out": ["train-features", "digits", "--out", "/dev/null/x.safetensors"],
}


def told(place, code, *arguments):
    """What a program says in a process of its own, and the seconds of computing it takes; nothing is left behind."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    after = os.times()
    assert not list(place.iterdir())
    return done, after.children_user + after.children_system - before.children_user - before.children_system


COMMAND = "import sys; from diffusion.commands.app import command; from diffusion.commands.dispatch import main; "


def test_what_is_wrong_is_told_without_torch(tmp_path):
    """One process meets all of it, one after another; what loads torch is named."""
    cases = (
        f"for case, words in {WITHOUT_TORCH!r}.items():\n"
        "    print(command(main, words), 'torch' in sys.modules, case, flush=True)\n"
        "    print('-', file=sys.stderr, flush=True)"
    )
    done, _ = told(tmp_path, f"{COMMAND}\n{cases}")
    assert done.stdout.splitlines() == [f"2 False {case}" for case in WITHOUT_TORCH], done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines[::2]), lines
    assert lines[1::2] == ["-"] * len(WITHOUT_TORCH), "one line each"


def time_of(place, arguments, code):
    """Of computing: what else the machine does is not the command's."""
    done, seconds = told(place, f"{COMMAND}sys.exit(command(main, sys.argv[1:]))", *arguments)
    assert done.returncode == code, (arguments, done.stderr)
    return seconds


LIMIT = 1.0  # seconds that help and errors may take


@pytest.mark.slow
def test_help_and_errors_take_less_than_a_second(tmp_path, capsys):
    """Every one of them; the longest is printed."""
    errors = {
        **{" ".join(words): words for words in WITHOUT_TORCH.values()},
        **{f"train {name} {more}": ["train", "--config", name, *more.split()] for name, more in CASES},
        **{f"train {override}": ["train", "--config", "digits", override] for override in REFUSED},
        **{f"train {' '.join(words)}": ["train", *words] for words in REFUSED_ARGUMENTS},
    }
    helps = {f"{name} --help": [name, "--help"] for name in COMMANDS} | {"--help": ["--help"]}
    taken = {name: time_of(tmp_path, words, 2) for name, words in errors.items()}
    taken |= {name: time_of(tmp_path, words, 0) for name, words in helps.items()}
    longest = max(taken, key=taken.get)
    with capsys.disabled():
        print(f"\n{len(errors)} errors, {len(helps)} helps: {taken[longest]:.2f} s at most ({longest})")
    assert taken[longest] < LIMIT


def test_an_error_and_a_help_take_less_than_a_second(tmp_path):
    for words, code in ((["quality", "nope"], 2), (["train", "trainer.stps=3", "optimizer.lrr=1"], 2)):
        assert time_of(tmp_path, words, code) < LIMIT
    assert time_of(tmp_path, ["train", "--help"], 0) < LIMIT


def test_the_feature_networks_are_those_that_are_shipped():
    assert FEATURES == ("digits", "mnist", "inception")
