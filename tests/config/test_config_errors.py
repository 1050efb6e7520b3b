"""Configurations that cannot be meant are refused in one line: the key or file, what was found, what is accepted."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from diffusion.config import NetworkConfig, TrainerConfig, load_config, parse_config, parse_train_arguments
from diffusion.errors import UserError

REFUSED = {
    "trainer.stps=5": "unknown key 'trainer.stps' on the command line. Did you mean 'trainer.steps'?",
    "lr=1": "unknown key 'lr' on the command line. Did you mean 'optimizer.lr'?",
    "trainer=5": "'trainer' on the command line is a section; give one of its keys, e.g. trainer.steps.",
    "schedule.name=cosin": "schedule.name: found 'cosin'; must be one of vp, cosine, subvp, ve, edm, rectified, ddpm, "
    "learned. Did you mean 'cosine'?",
    "trainer.steps=0": "trainer.steps: found 0; must be an integer at least 1",
    "trainer.steps=1.5": "trainer.steps: found 1.5; must be an integer at least 1",
    "trainer.steps=true": "trainer.steps: found true; must be an integer at least 1",
    "trainer.steps={a: 1}": "trainer.steps: found a mapping; must be an integer at least 1",
    "optimizer.lr=0": "optimizer.lr: found 0; must be a number above 0",
    "optimizer.lr=nan": "optimizer.lr: found 'nan'; must be a number above 0",
    "optimizer.lr=1e999": "optimizer.lr: found 1e999; must be a number above 0",
    "optimizer.lr=": "optimizer.lr: found null; must be a number above 0",
    "optimizer.betas=[0.9]": "optimizer.betas: found [0.9]; must be a list of 2 numbers at least 0 and below 1",
    "optimizer.betas=[0.9, 1]": "optimizer.betas: found [0.9, 1]; must be a list of 2 numbers at least 0 and below 1",
    "network.dropout=1": "network.dropout: found 1; must be a number at least 0 and below 1",
    "network.attention=[1": "network.attention: found '[1'; not valid YAML, a list is written [1, 2]",
    "network.base_channels=5": "network.base_channels: found 5; must be even",
    "network.width=64": "network.width: found 64; 'unet' does not take it; it takes base_channels, ",
    "schedule.beta_min=1": "schedule.beta_min: found 1.0; 'cosine' does not take it; it takes log_snr_min, log_snr_max",
    "schedule.log_snr_min=20": "schedule.log_snr_min: found 20; must be below schedule.log_snr_max, 14",
    "objective.min_snr_gamma=5": "objective.min_snr_gamma: found 5.0; 'elbo' does not take it",
    "evaluation.tolerance=-1e-5": "evaluation.tolerance: found -1e-5; must be a number above 0",
    "trainer.accumulate=3": "trainer.batch_size: found 64; must be a multiple of accumulate x devices, 3",
    "trainer.compile=yes": "trainer.compile: found 'yes'; must be auto or true or false",
    "data.name=folder": "data.path: found null; must be the images where data.name is 'folder'",
    "data.path=x": "data.path: found 'x'; 'digits' does not take it",
    "name=../x": "name: found '../x'; must be the name of a folder, not a path",
    "=5": "'=5': must be key=value, e.g. trainer.steps=1000",
}


@pytest.mark.parametrize("override", REFUSED)
def test_override_is_refused(override):
    with pytest.raises(UserError) as error:
        load_config("digits", [override])
    assert str(error.value).startswith(REFUSED[override])
    assert "\n" not in str(error.value)


REFUSED_TEXTS = {
    "trainer: {steps: 5}\nseed: [": "it:2: not valid YAML: ",
    "seed: 1\nseed: 2": "it:2: key 'seed' is given twice",
    "trainer: {steps: 5}\ntrainer.steps: 6": "it: key 'trainer.steps' is given twice",
    "- 1\n- 2": "it: found [1, 2]; must be a mapping of keys to values",
    "cifar": "it: found 'cifar'; must be a mapping of keys to values",
    "trainer: 5": "trainer: found 5 in it; must be a mapping of keys to values",
    "seed: !!python/object/apply:os.getcwd []": "it:1: the tag 'tag:yaml.org,2002:python/",
    "seed: !!int '5'": "it:1: the tag ",
    "a: &a 5\nseed: *a": "it:2: not valid YAML: aliases are not accepted",
    "? [1]\n: 2": "it:1: found [1] as a key; must be a word",
    "seed: 1\n---\nseed: 2": "it:2: not valid YAML: but found another document",
    "seed: \x00": "it: not valid YAML: ",
    "[" * 1500: "it: nested too deeply",
}


@pytest.mark.parametrize("text", REFUSED_TEXTS, ids=lambda text: text[:20])
def test_text_is_refused(text):
    with pytest.raises(UserError) as error:
        parse_config(text, source="it")
    assert str(error.value).startswith(REFUSED_TEXTS[text])
    assert "\n" not in str(error.value)


def test_all_unknown_keys_are_named_at_once(tmp_path):
    (tmp_path / "x.yaml").write_text("trainer: {stps: 5, batch: 3, steps: 0}\nmodel: {a: 1}")
    with pytest.raises(UserError) as error:
        parse_train_arguments(["--config", str(tmp_path / "x.yaml"), "--network.dpth", "3"])
    message = str(error.value)
    for key, mended in (
        ("trainer.stps", "trainer.steps"),
        ("trainer.batch", "trainer.batch_size"),
        ("network.dpth", "network.depth"),
    ):
        assert f"unknown key '{key}'" in message
        assert f"Did you mean '{mended}'?" in message
    assert "unknown key 'model' in" in message
    assert "x.yaml" in message


REFUSED_ARGUMENTS = {
    (
        "--config",
        "cifr",
    ): "configuration 'cifr': not found; available: ar1, ar1-volume, cifar, digits, eae-cifar, eae-digits, "
    "eae-mnist, mnist, "
    "mnist-class, table, toy, vae-cifar, vae-digits, vae-mnist, vdm-digits, vdm-mnist. Did you mean 'cifar'?",
    ("--config", "/"): "configuration '/': is a folder; available: ",
    ("--config",): "--config: needs a value",
    ("--config", "toy", "--config", "cifar"): "--config: given twice, toy and cifar",
    ("--confg", "toy"): "unknown option '--confg'. Did you mean '--config'?",
    ("--steps", "3"): "unknown option '--steps'. Did you mean '--trainer.steps'?",
    ("config=cifar",): "unknown key 'config'. Did you mean '--config cifar'?",
    ("runs/x",): "unknown argument 'runs/x'; write key=value, --key VALUE or --config NAME. "
    "Did you mean '--resume runs/x'?",
    ("mine/x.yaml",): "unknown argument 'mine/x.yaml'; write key=value, --key VALUE or --config NAME. "
    "Did you mean '--config mine/x.yaml'?",
    ("--seed", "--resume", "x"): "--seed: needs a value",
    (
        "cifar",
    ): "unknown argument 'cifar'; write key=value, --key VALUE or --config NAME. Did you mean '--config cifar'?",
    ("trainer.steps", "5"): "trainer.steps: needs a value; write trainer.steps=VALUE or --trainer.steps VALUE",
    (
        "--wandb",
        "onlin",
    ): "logging.wandb: found 'onlin'; must be one of auto, online, offline, off. Did you mean 'online'?",
}


@pytest.mark.parametrize("argv", REFUSED_ARGUMENTS, ids=" ".join)
def test_arguments_are_refused(argv, capsys):
    with pytest.raises(UserError) as error:
        parse_train_arguments(argv)
    assert str(error.value).startswith(REFUSED_ARGUMENTS[argv])
    assert capsys.readouterr() == ("", "")


def test_unreadable_file_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(UserError, match=r"cannot be read as a configuration: is not UTF-8 text"):
        load_config(tmp_path / "x.yaml")


def test_python_is_checked_like_text():
    assert NetworkConfig(multipliers=[1]).multipliers == (1,)
    with pytest.raises(UserError, match=r"trainer.steps: found '5'; must be an integer at least 1"):
        TrainerConfig(steps="5")
    with pytest.raises(UserError, match=r"unknown key 'trainer.stps'. Did you mean 'steps'\?"):
        TrainerConfig(stps=5)
    with pytest.raises(UserError, match=r"trainer.steps: found 0; must be an integer at least 1"):
        TrainerConfig().replace(steps=0)
    with pytest.raises(ValidationError, match="frozen"):
        TrainerConfig().steps = 5  # type: ignore[misc]
