"""Configurations survive text, agree with what they configure, and explain themselves, quickly and without torch."""

from __future__ import annotations

import inspect
import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from terminal_width import fits

from diffusion.config import (
    Config,
    NetworkConfig,
    ScheduleConfig,
    available_configs,
    dump_config,
    help_text,
    load_config,
    parse_config,
    parse_train_arguments,
)
from diffusion.config.files import KEYS, SECTIONS
from diffusion.config.options import Section, choices, declared
from diffusion.config.run_sections import EMAConfig, OptimizerConfig
from diffusion.config.sections import DataConfig, DenoiserConfig
from diffusion.errors import UserError
from diffusion.networks import MLP, DiT, UNet
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Learned, Rectified, SubVP

ROOT = Path(__file__).parents[2]
FAMILIES = tuple(choices(Config.accepts("family")))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TRICKY = st.sampled_from(
    [
        "",
        "null",
        "~",
        "true",
        "off",
        "1e-4",
        "1_000",
        "0x1",
        "a: b",
        "# no",
        "- x",
        " x ",
        "2024-01-01",
        "\x85  ",
        " a\u2028 b",
    ]
)


@pytest.mark.parametrize(
    "name",
    ["digits", "mnist", "cifar", "toy", "vdm-digits", "vdm-mnist"]
    + [f"{f}-{d}" for f in ("vae", "eae") for d in ("digits", "mnist", "cifar")],
)
def test_shipped_config_survives_text_and_differs_from_the_defaults(name):
    config = load_config(name)
    assert parse_config(dump_config(config)) == config
    assert config.name == name
    assert config.replace(name=None) != Config()


def values(schema: dict[str, Any]) -> st.SearchStrategy:
    """Valid values of an option, by its JSON schema."""
    if "anyOf" in schema:
        return st.one_of([values(member) for member in schema["anyOf"]])
    if words := choices(schema):
        return st.sampled_from(words)
    if schema["type"] == "array":
        pair = schema.get("prefixItems")
        return st.tuples(*map(values, pair)) if pair else st.lists(values(schema["items"]), max_size=4).map(tuple)
    low, high = schema.get("minimum", -1e12), schema.get("maximum", 1e12)
    low, high = max(low, schema.get("exclusiveMinimum", low)), min(high, schema.get("exclusiveMaximum", high))
    outer = {"exclude_min": "exclusiveMinimum" in schema, "exclude_max": "exclusiveMaximum" in schema}
    return {
        "integer": st.integers(int(low), int(high)),
        "number": st.floats(low, high, **outer) | st.floats(max(low, 0), min(high, 1), **outer),
        "boolean": st.booleans(),
        "string": TEXT | TRICKY,
        "null": st.none(),
    }[schema["type"]]


def takers(section: type[Section], name: str) -> tuple[str, ...]:
    return declared(section.model_fields[name], "families") or section.families or FAMILIES


def arguments_of(draw: Any, section: type[Section], fixed: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a section with some options given at random, of the kinds that were drawn."""
    given_options = dict(fixed)
    options = {name for name in section.model_fields if name not in SECTIONS and name not in fixed}
    for selector, variants in section.variants().items():
        given_options[selector] = chosen = fixed.get(selector) or draw(values(section.accepts(selector)))
        foreign = {name for taken in variants.values() for name in taken} - variants.get(chosen, {}).keys()
        options -= foreign | {selector}
    for name in draw(st.lists(st.sampled_from(sorted(options)), unique=True)) if options else ():
        given_options[name] = draw(values(section.accepts(name)))
    return given_options


# options bound by one another are kept, so that what is drawn is valid
FIXED: dict[str, dict[str, Any]] = {
    "data": {"name": "mnist", "size": "8x12"},
    "denoiser": {"condition": ("label", "1e-4", "off", "downsample:2", "ä.b")},
    "schedule": {"beta_min": None, "log_snr_min": None, "sigma_min": None, "beta_start": None, "beta_max": None}
    | {"log_snr_max": None, "sigma_max": None, "beta_end": None},
    "network": {"base_channels": None, "width": None, "heads": None, "multipliers": None},
    "ema": {"widths": (0.05, 0.1)},
    "trainer": {"accumulate": 1, "devices": 1, "lora": None},
    "autoencoder": {"iwae_samples": 1, "multipliers": (1, 2)},
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_config_survives_text(data):
    # made here, not in a strategy: the shape checker draws random numbers of its own
    family = data.draw(st.sampled_from(FAMILIES))
    drawn = {}
    for name, section in SECTIONS.items():
        arguments = arguments_of(data.draw, section, FIXED.get(name, {}))
        if arguments.get("grid") == "auto":
            arguments["log_snr_end"] = None  # it chooses its own
        drawn[name] = section(**{key: v for key, v in arguments.items() if family in takers(section, key)})
    if drawn["denoiser"].prediction == "levels":
        drawn["objective"] = drawn["objective"].replace(dequantize=False)
    root = arguments_of(data.draw, Config, {"name": data.draw(st.none() | st.just("a run")), "family": family})
    config = Config(**(root | drawn))
    text = dump_config(config)
    assert parse_config(text, name="other") == config, text


def test_text_of_scalars_is_read_by_the_type_of_the_key():
    text = "name: 2024\noptimizer: {lr: 1e-4, warmup: 5_000}\nlogging: {wandb: off, tags: [yes, 1, '']}\n"
    text += "trainer.precision: 32"
    config = parse_config(text)
    assert (config.name, config.optimizer.lr, config.optimizer.warmup) == ("2024", 1e-4, 5000)
    assert (config.logging.wandb, config.logging.tags, config.trainer.precision) == ("off", ("yes", "1", ""), "32")
    assert isinstance(config.optimizer.lr, float)


def test_empty_texts_and_sections_are_the_defaults():
    assert parse_config("") == parse_config("# nothing\n") == parse_config("trainer:\n  # steps: 5\n") == Config()


def defaults_of(cls: type, names: Any) -> dict[str, Any]:
    parameters = inspect.signature(cls).parameters
    return {name: parameters[name].default for name in names}


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("vp", VP),
        ("subvp", SubVP),
        ("cosine", Cosine),
        ("rectified", Rectified),
        ("ve", VE),
        ("edm", EDM),
        ("ddpm", DDPM),
        ("learned", Learned),
    ],
)
def test_schedule_options_are_the_arguments_of_the_schedule(name, cls):
    assert ScheduleConfig(name=name).options() == defaults_of(cls, inspect.signature(cls).parameters)


@pytest.mark.parametrize(("name", "cls"), [("unet", UNet), ("dit", DiT), ("mlp", MLP)])
def test_network_options_are_arguments_of_the_network(name, cls):
    options = NetworkConfig(name=name).options()
    assert options == defaults_of(cls, options)
    given_elsewhere = {"in_channels", "num_classes", "parts", "image_size", "out_channels"}  # by data and prediction
    of_others = {"norm_groups", "norm_eps", "pad_end"}  # known formats alone set these
    assert options.keys() == inspect.signature(cls).parameters.keys() - given_elsewhere - of_others


def test_cifar_average_is_that_of_ddpm():
    config = load_config("cifar")
    assert 0.5 ** (config.trainer.batch_size / config.ema.half_life) == pytest.approx(0.9999, abs=1e-9)
    assert config.ema.half_life == pytest.approx(math.log(0.5) / math.log(0.9999) * 128, abs=1)


def test_later_overrides_win_over_earlier_and_over_the_file():
    argv = [
        "trainer.steps=7",
        "--config",
        "cifar.yaml",
        "--trainer.steps",
        "8",
        "--optimizer.lr=1e-3",
        "network.attention=[8, 16]",
    ]
    config = parse_train_arguments(argv).config
    assert (config.trainer.steps, config.optimizer.lr, config.network.attention) == (8, 1e-3, (8, 16))
    assert config.schedule.name == "ddpm"
    assert config == load_config("cifar", ["trainer.steps=8", "optimizer.lr=0.001", "network.attention=[8,16]"])


def test_another_kind_takes_the_place_of_a_file_s_with_its_options(tmp_path):
    """A DiT has no `base_channels`; what is given with it, and what both kinds take, counts."""
    file = tmp_path / "mine.yaml"
    file.write_text("network: {base_channels: 8, attention: [], patch_size: 1}\noptimizer: {name: muon, muon_lr: 0.1}")
    config = load_config(file, ["network.name=dit", "network.width=48", "optimizer.name=adamw"])
    assert config.network == NetworkConfig(name="dit", width=48, patch_size=1)
    assert config.optimizer == OptimizerConfig(name="adamw")
    assert load_config(file, {"network": {"name": "dit", "width": 48}}).network == config.network
    assert load_config(file, ["network.name=unet"]).network.base_channels == 8
    with pytest.raises(UserError, match=r"network\.base_channels: found 16; 'dit' does not take it"):
        load_config(file, ["network.name=dit", "network.base_channels=16"])
    with pytest.raises(UserError, match=r"network\.name: found 'dti'"):
        load_config(file, ["network.name=dti"])


def test_arguments():
    assert parse_train_arguments([]).config == load_config("digits")
    arguments = parse_train_arguments(["--wandb", "off", "--resume=never", "name=null", "--data.root", "-x"])
    assert (arguments.config.logging.wandb, arguments.resume) == ("off", "never")
    assert (arguments.config.name, arguments.config.data.root) == (None, "-x")


def test_bare_names_are_found_here_before_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("toy").data.name == "gaussians"
    (tmp_path / "toy").write_text("not a configuration")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.yaml").write_text("seed: 5")
    (tmp_path / "mine.yaml").write_text("seed: 6\nname: other")
    assert (load_config("toy").seed, load_config("toy.yaml").seed) == (5, 5)
    assert (load_config("mine.yaml").seed, load_config(tmp_path / "mine.yaml").name) == (6, "other")
    assert {"toy", "cifar"} <= set(available_configs())


def test_help_explains_every_key(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        parse_train_arguments(["--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert page == help_text()
    assert fits(page)
    for section in (Config, *SECTIONS.values()):
        assert section.__doc__
        assert " ".join(section.__doc__.split()) in " ".join(page.split())
        for name, field in section.model_fields.items():
            if name in SECTIONS:
                continue
            entry = page[page.index(f"\n  {section.key(name)} ") :]
            words = " ".join(entry.split())
            assert field.description
            assert f"{section.key(name)} {field.description} (" in words
    assert len(KEYS) == len(set(KEYS)) > 70


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "my own.yaml").write_text("runs: ~/runs\ndata: {name: folder, path: ~/images, cache: ~/c/, root: ~/d}")
    config = load_config(tmp_path / "my own.yaml")
    assert (config.runs, config.data.path, config.data.cache, config.data.root) == (
        "/home/me/runs", "/home/me/images", "/home/me/c/", "/home/me/d",
    )  # fmt: skip
    assert load_config("toy", ["runs=~/a b"]).runs == "/home/me/a b"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_config("~/my own.yaml").name == "my-own"
    # a model of another machine's user is read
    assert load_config("toy", ["data.root=~no-such-user/x"]).data.root == "~no-such-user/x"


@pytest.mark.parametrize(
    ("stem", "name"), [("a b", "a-b"), ("-x", "x"), ("\u00fc", "run-\u00fc"), ("[red]", "red"), ("-.", "run")]
)
def test_any_file_gives_its_runs_a_name(tmp_path, stem, name):
    (tmp_path / f"{stem}.yaml").write_text("seed: 1")
    assert load_config(tmp_path / f"{stem}.yaml").name == name


def test_print_config_prints_what_reads_back(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_train_arguments(["--config", "toy", "seed=9", "--print_config"])
    assert stop.value.code == 0
    assert parse_config(capsys.readouterr().out) == load_config("toy", ["seed=9"])


def test_parsing_is_quick_and_imports_no_torch():
    code = (
        "import sys; from diffusion.config import parse_train_arguments, help_text; help_text();"
        "parse_train_arguments(['--config', 'cifar', 'trainer.steps=5']);"
        "assert not {'torch', 'lightning', 'numpy', 'wandb'} & sys.modules.keys()"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert seconds < 1


def test_values_from_python_may_be_paths_and_numbers_of_numpy():
    found = DataConfig(name="folder", path=Path("x"), size=np.int64(8))
    assert (found.path, found.size) == ("x", 8)
    assert EMAConfig(half_life=np.float32(8.0), widths=np.array([0.05, 0.1])).widths == (0.05, 0.1)
    assert DenoiserConfig(condition=np.array(["mask"])).condition == ("mask",)
    with pytest.raises(UserError, match=r"data\.size: found 0"):
        DataConfig(name="folder", path="x", size=np.int64(0))


@pytest.mark.parametrize("flag", ["--from", "--lora", "--resume", "--config", "--wandb"])
@pytest.mark.parametrize("argv", [lambda flag: [flag, ""], lambda flag: [f"{flag}="]])
def test_a_flag_without_a_value_is_no_null(flag, argv):
    """`--from "$MODEL"` of a variable that is not set began anew, without a word."""
    with pytest.raises(UserError, match=rf"^{flag}: found ''; needs a value$"):
        parse_train_arguments(argv(flag))
