"""An array through the commands: trained, resumed, sampled, evaluated by one and by several, in its own units."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from by_ranks import by_ranks
from tiny_configs import TOY

import diffusion
from diffusion.commands import records
from diffusion.commands.app import command, sample
from diffusion.commands.dispatch import main
from diffusion.commands.evaluate import measuring
from diffusion.commands.subjects import images_of, load_data_of, load_subject
from diffusion.commands.train.train import train
from diffusion.config import load_config
from diffusion.data import normalizer as normalizers
from diffusion.models.build import DataFacts
from diffusion.models.load import load
from diffusion.processes import Processes

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

N, OFFSET, SCALE = 60, 5e4, 100.0
_UNET = ("network.base_channels=4", "network.multipliers=[1]", "network.blocks=1",
         "network.attention=[]", "sampling.sampler=ddim")  # fmt: skip
_MLP = tuple(option for option in TOY if option.startswith("network."))
_ALL = tuple(option for option in TOY if not option.startswith("network."))
KINDS = {
    "vectors": ((3,), _MLP),
    "signals": ((2, 4), _UNET),
    "images": ((1, 4, 2), _UNET),
    "volumes": ((1, 4, 2, 4), _UNET),
}
_SECONDS = ("--steps", "2", "--sampler", "ddim")


def made(folder, kind):
    """An array far from 0 in a file, and the settings of a run on it."""
    shape, network = KINDS[kind]
    x = OFFSET + SCALE * np.random.default_rng(0).normal(size=(N, *shape))
    np.save(folder / "x.npy", x)
    config = "table" if len(shape) == 1 else "ar1"
    array = ("data.name=array", "data.path=x.npy", "name=table")
    return x, ["--config", config, *_ALL, *array, *network, "evaluation.enabled=false"]


def trained(*overrides):
    return command(train, list(overrides))


def run(*argv):
    return command(main, list(argv))


def sampled(*argv):
    return command(sample, [*argv, "--device", "cpu"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained_drawn_and_measured(here, capsys, kind):
    x, settings = made(here, kind)
    whiten = kind in ("vectors", "signals")
    assert trained(*settings, *(("data.normalize=whiten",) if whiten else ())) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert f"data: {N} rows from {here / 'x.npy'}: {' x '.join(map(str, x.shape[1:]))} numbers each, float64" in (
        " ".join(out.split())
    )

    for name in ("s.npy", "s.npz"):
        assert sampled("--n", "6", *_SECONDS, "--out", name) == 0
    drawn = np.load("s.npy")
    with np.load("s.npz") as arrays:
        assert np.array_equal(arrays["samples"], drawn)
    model = load("runs/table-0001")
    assert np.array_equal(drawn, model.sample(6, steps=2, sampler="ddim").numpy())
    assert np.abs(drawn - OFFSET).max() < 50 * SCALE, "in the units of the data"
    assert drawn.std() > 0.01 * SCALE

    capsys.readouterr()
    asked = ("evaluate", "table-0001", "--images", "4", "--tolerance", "0.1", "--wandb", "off", "--device", "cpu")
    assert run(*asked) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "nats/dim" in out
    assert "bits/dim" not in out
    (path,) = Path("runs/table-0001/evaluations").glob("*.json")
    evaluation = records.read(path)
    estimate = evaluation.estimate
    assert estimate.levels is None
    trace = "exact" if x[0].size <= 16 else "hutchinson"
    assert (estimate.protocol["trace"], estimate.protocol["normalizer"]) == (trace, "whiten" if whiten else "standard")
    rows = estimate.indices
    again = model.log_density(load_test(model)[rows], indices=rows, tolerance=0.1)
    torch.testing.assert_close(again.log_prob, estimate.log_prob, rtol=1e-6, atol=1e-6)
    assert run(*asked) == 0
    assert "(cached)" in capsys.readouterr().out
    if kind == "vectors":
        assert run("compare", "table-0001", "--wandb", "off", "--out", "found") == 0, capsys.readouterr().err
        assert "Likelihood of 4 test rows of array" in capsys.readouterr().out
        (row,) = json.loads(Path("found/comparison.json").read_text())["rows"]
        assert row["nats_per_dim"] == pytest.approx(float(estimate.nats_per_dim.mean()), rel=1e-9)
        assert Path("found/nats_per_dim.png").is_file()


def load_test(model):
    from diffusion.models.build import build_data

    return build_data(model.config).array.test[:]


def test_a_run_goes_on_with_its_own_normaliser_and_on_its_own_data_alone(here, capsys, monkeypatch):
    _, settings = made(here, "vectors")
    settings = [*settings, "data.normalize=whiten", "trainer.checkpoint_every=2", "trainer.steps=4"]
    assert trained(*settings) == 0
    whole = load("runs/table-0001")
    fit = normalizers.fit

    def turned(*arguments, **options):
        """As another machine may find them: the directions in another order."""
        found = fit(*arguments, **options)
        return replace(found, variances=found.variances.flip(0), directions=found.directions.flip(1))

    run_folder = Path("runs/table-0001")
    (run_folder / "model.safetensors").unlink()
    monkeypatch.setattr(normalizers, "fit", turned)
    capsys.readouterr()
    assert trained(*settings, "--resume", "table-0001") == 0, capsys.readouterr().err
    resumed = load("runs/table-0001")
    x = load_test(whole)[:3]
    assert torch.equal(resumed.normalizer.normalize(x), whole.normalizer.normalize(x))
    assert all(torch.equal(a, b) for a, b in zip(whole.module.state_dict().values(),
                                                 resumed.module.state_dict().values(), strict=True))  # fmt: skip
    (run_folder / "model.safetensors").unlink()
    np.save("x.npy", np.load("x.npy") + 1)
    capsys.readouterr()
    assert trained(*settings, "--resume", "table-0001") == 2
    assert "these are not the data that" in capsys.readouterr().err


def test_several_processes_measure_what_one_does(here):
    _, settings = made(here, "vectors")
    assert trained(*settings, "trainer.steps=1") == 0
    how = measuring.How(torch.device("cpu"), batch_size=2)

    def shared(count, home):
        def one(rank):
            subject = load_subject("table-0001", "runs", points=True)
            object.__setattr__(subject, "home", home)
            rows, identity = images_of(load_data_of(subject), "test", 5)
            protocol = measuring.question(subject, identity, "ode", {"seed": 0, "tolerance": 0.1})
            return measuring.measure(
                subject, rows, protocol, replace(how, processes=Processes(rank, count, rank, count))
            )

        return by_ranks(count, one)

    (alone,) = shared(1, Path("one"))
    for evaluation in shared(2, Path("two")):
        assert torch.equal(evaluation.estimate.log_prob, alone.estimate.log_prob)
        assert evaluation.protocol == alone.protocol


def test_the_check_of_conventions_takes_an_array(here, capsys):
    _, settings = made(here, "vectors")
    assert trained(*settings, "trainer.steps=1") == 0
    capsys.readouterr()
    run("check", "table-0001", "--images", "4", "--json")
    assert json.loads(capsys.readouterr().out)["data"]["images"] == 4


def test_cost_against_quality_is_of_the_normalised_numbers(here, capsys):
    _, settings = made(here, "vectors")
    assert trained(*settings, "trainer.steps=1") == 0
    assert run("tradeoff", "table-0001", "--samplers", "ddim", "--budgets", "3", "--n", "40") == 0
    (row,) = json.loads(Path("runs/table-0001/tradeoff/tradeoff.json").read_text())["rows"]
    model, data = diffusion.load("runs/table-0001"), diffusion.data.load_array(here / "x.npy")
    x = diffusion.sample(model, 40, sampler="ddim", steps=3)
    z, reference = (model.normalizer.normalize(torch.as_tensor(rows)).numpy() for rows in (x, data.train[:]))
    a, b = np.cov(z.T), np.cov(reference.T)
    gap = np.square(z.mean(0) - reference.mean(0)).sum()
    assert row["fid"] == pytest.approx(gap + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real), rel=1e-3)
    assert row["exposure"] == pytest.approx(np.square(z).mean() / np.square(reference).mean(), rel=1e-3)
    capsys.readouterr()
    assert run("tradeoff", "table-0001", "--features", "digits") == 2
    assert "table-0001 has numbers, which are their own features; leave it out" in capsys.readouterr().err


def test_what_is_for_images_is_refused(here, capsys):
    _, settings = made(here, "vectors")
    assert trained(*settings, "trainer.steps=1") == 0
    capsys.readouterr()
    for argv, message in (
        (("evaluate", "table-0001", "--ranked"), "--ranked, --ood: are for images of levels"),
        (("compare", "table-0001"), "its test data are not measured yet"),
        (("quality", "table-0001"), "are not of levels"),
    ):
        assert run(*argv) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert sampled("--out", "x.zip") == 2
    assert "are numbers; accepted: x.npz, x.npy, x.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("table", ["data.path=none.npy"], "data.path: none.npy does not exist; accepted: a .npy or .npz file, or a"),
        ("table", ["data.size=8"], "data.size: found 8; 'array' does not take it"),
        ("table", ["data.normalize=whitten"], "Did you mean 'whiten'"),
        ("toy", ["data.normalize=whiten"], "data.normalize: found 'whiten'; 'gaussians' does not take it"),
        ("ar1", ["data.name=array"], "network.name: found 'unet'; data of shape (3,) need mlp"),
        ("vae-digits", ["data.name=array"], "family: found 'vae', which models images of levels; 'array' has none"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(here, capsys, config, overrides, message):
    made(here, "vectors")
    path = () if config == "toy" else ("data.path=x.npy",)
    assert trained("--config", config, "device=cpu", "logging.wandb=off", *path, *overrides) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_facts_of_a_table_without_a_normaliser_are_those_of_before():
    assert "normalizer" not in DataFacts("array", (3,), None, 0).to_json()
    assert load_config("table", []).data.normalize == "standard"
