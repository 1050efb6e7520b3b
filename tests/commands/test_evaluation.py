"""The end of a run: each test image once, the same figures in every place, and baselines that give them a scale."""

import csv
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tiny_configs import digits_config, toy_config

from diffusion.baselines import classical_set
from diffusion.baselines.classical_set import classical_models
from diffusion.commands import evaluation, records, report
from diffusion.commands.evaluate import measuring
from diffusion.commands.evaluation import describe, evaluate, left_out, measure_classical, summary
from diffusion.commands.subjects import Subject
from diffusion.config import EvaluationConfig
from diffusion.data import ImageData, load_toy
from diffusion.denoisers import exact
from diffusion.likelihood import Estimate
from diffusion.likelihood.probability_flow import FlowLikelihood
from diffusion.models.build import Data, DataFacts
from diffusion.models.load import DiffusionModel
from diffusion.numerics.random import FIXED_ORDER, fixed_order
from diffusion.schedules import VP
from diffusion.storage import runs

LEVELS = 5
CLASSICAL = ["independent pixels", "Gaussian mixture", "mixture of categoricals", "autoregressive forest"]
OPTIONS = EvaluationConfig(tolerance=1e-3, elbo_draws=4, batch_size=7)


@pytest.fixture(scope="module")
def images():
    """Images of two pixels with five levels, and a model of them that is a Gaussian in closed form."""
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        x = torch.randn(n, 1, 1, 2, generator=generator, dtype=torch.float64) * 0.8 + 2.0
        return x.round().clamp(0, LEVELS - 1).to(torch.uint8)

    train, validation, test = draw(300), draw(60), draw(40)
    unlabelled = {"train_labels": None, "validation_labels": None, "test_labels": None}
    data = ImageData(
        name="folder", train=train, validation=validation, test=test, **unlabelled, levels=LEVELS, num_classes=0,
        flip=False, provenance={},
    )  # fmt: skip
    return Data(DataFacts("folder", (1, 1, 2), LEVELS, 0), images=data)


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
    width = 2 / LEVELS
    denoiser = exact.Gaussian(torch.zeros(1, 1, 2), (0.64 + 1 / 12) ** 0.5 * width, VP())
    return DiffusionModel(denoiser, digits_config(tmp_path_factory.mktemp("runs")), images.facts)


def measured(model, data, home, options, *progress):
    """The estimates of a model whose run is the folder `home`."""
    return evaluate(Subject(home.name, home, model, 64 * "0"), data, options, torch.device("cpu"), *progress)[0]


@pytest.fixture(scope="module")
def estimates(images, model, tmp_path_factory):
    told = []
    home = tmp_path_factory.mktemp("run")
    found = measured(model, images, home, OPTIONS, lambda *progress: told.append(progress))
    return found, told


def test_the_models_own_figures_come_first_and_each_image_counts_once(images, estimates):
    found, told = estimates
    assert list(found) == ["PF-ODE", "ELBO", *CLASSICAL]
    for name, estimate in found.items():
        assert len(estimate) == 40, name
        assert estimate.levels == LEVELS
        assert estimate.dims == 2
        assert sorted(estimate.indices.tolist()) == list(range(40)), name
    for name in ("PF-ODE", "ELBO"):
        steps = [(done, count) for told_name, done, count, *note in told if told_name == name and not note]
        assert steps == [(min(7 * i, 40), 40) for i in range(7)]
    budget = [(name, *progress) for name, *progress in told if "error budget" in progress]
    assert budget == [("PF-ODE", done, 4, "error budget") for done in range(5)], "solver, ends, and single draws"


def test_what_was_cut_off_is_continued_and_what_is_complete_is_found(images, model, estimates, tmp_path):
    whole, _ = estimates
    options = OPTIONS.replace(baselines=False)

    def cut_off(name, done, count, *note):
        if (name, done) == ("ELBO", 21):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(model, images, tmp_path, options, cut_off)
    told = []
    found = measured(model, images, tmp_path, options, lambda *progress: told.append(progress))
    between = [progress for progress in told if len(progress) == 3]  # the others are within a part, with its NFE
    assert between == [("ELBO", done, 40) for done in (21, 28, 35, 40)]
    for name, estimate in found.items():
        assert torch.equal(estimate.log_prob, whole[name].log_prob)
        assert estimate.error_budget == whole[name].error_budget
    assert len(records.read_all(tmp_path)) == 2
    told.clear()
    again = measured(model, images, tmp_path, options, lambda *progress: told.append(progress))
    assert ([e.to_dict() for e in again.values()], told) == ([e.to_dict() for e in found.values()], [])


def test_an_option_at_its_default_is_not_a_part_of_the_question(model, tmp_path):
    """A plain `evaluate` asks the same, so the defaults have to be those of the estimator."""
    options, defaults = EvaluationConfig(), FlowLikelihood()
    assert (options.tolerance, options.probes) == (defaults.tolerance, defaults.probes)
    centres = model.config.replace(objective=model.config.objective.replace(dequantize=False))
    on_centres = DiffusionModel(model.denoiser, centres, model.facts)
    for asked, of_bins, of_centres in [
        ({}, {}, {}),
        ({"tolerance": 1e-3}, {"tolerance": 1e-3}, {}),
        ({"tolerance": 1e-6, "probes": 2}, {"tolerance": 1e-6, "probes": 2}, {"tolerance": 1e-6, "probes": 2}),
    ]:
        asked = EvaluationConfig(**asked)
        assert model.estimators(asked)["PF-ODE"] == ("ode", of_bins)
        assert on_centres.estimators(asked)["PF-ODE"] == ("ode", of_centres)


def test_on_a_cpu_the_parts_are_small_so_that_the_time_left_is_known_early(
    images, model, estimates, tmp_path, monkeypatch
):
    monkeypatch.setattr(measuring, "CPU_CHUNK", 16)
    told, options = [], OPTIONS.replace(baselines=False, batch_size=256)
    found = measured(model, images, tmp_path, options, lambda *progress: told.append(progress))
    between = [progress for progress in told if len(progress) == 3]  # the others are within a part, with its NFE
    assert [progress[1:] for progress in between if progress[0] == "ELBO"] == [(0, 40), (16, 40), (32, 40), (40, 40)]
    assert torch.allclose(found["ELBO"].log_prob, estimates[0]["ELBO"].log_prob, atol=1e-5)


def test_a_part_of_the_images_is_in_the_fixed_order_with_the_noise_of_the_whole(images, model, estimates, tmp_path):
    whole, _ = estimates
    found = measured(model, images, tmp_path, OPTIONS.replace(images=9))
    rows = fixed_order(40)[:9].sort().values
    for name, estimate in found.items():
        assert estimate.indices.tolist() == rows.tolist(), name
        torch.testing.assert_close(estimate.log_prob, whole[name].log_prob[rows], rtol=1e-5, atol=1e-5)
        assert (estimate.protocol["of"], estimate.protocol["order"]) == (40, FIXED_ORDER)
        assert "order" not in whole[name].protocol


def test_the_figures_are_in_order(images, estimates):
    """Against the entropy of the truth: nothing is below it but by chance, and the fitted models are near."""
    found, _ = estimates
    edges = torch.tensor([-math.inf, 0.5, 1.5, 2.5, 3.5, math.inf], dtype=torch.float64)
    probability = torch.special.ndtr((edges - 2.0) / 0.8).diff()
    entropy = float(-(probability * probability.log2()).sum())
    figures = {name: estimate.mean() for name, estimate in found.items()}
    for name, interval in figures.items():
        assert interval.low < interval.mean < interval.high
        assert interval.high > entropy, name
    # two independent pixels: the histogram is the truth but for its estimation
    assert figures["independent pixels"].mean == pytest.approx(entropy, abs=0.25)
    for name in ("PF-ODE", "Gaussian mixture", "mixture of categoricals", "autoregressive forest"):
        assert figures[name].mean == pytest.approx(entropy, abs=0.4), name
    # of an exact model the bound is as good as the flow, up to the noise of four levels
    noise = math.hypot(figures["ELBO"].sem, figures["PF-ODE"].sem)
    assert abs(figures["ELBO"].mean - figures["PF-ODE"].mean) < 3 * noise
    assert {name: estimate.kind for name, estimate in found.items()} == {
        "PF-ODE": "lower bound",  # uniform dequantisation: Jensen
        "ELBO": "lower bound",
        "independent pixels": "exact",
        "Gaussian mixture": "lower bound",
        "mixture of categoricals": "exact",
        "autoregressive forest": "exact",
    }


def test_fewer_images_may_be_measured(images, model, monkeypatch, tmp_path):
    monkeypatch.setattr(classical_set, "_DENSITY_DIMS", 1)
    options = EvaluationConfig(images=9, tolerance=1e-2, elbo_draws=2)
    found = measured(model, images, tmp_path, options)
    assert {len(estimate) for estimate in found.values()} == {9}
    assert list(found) == ["PF-ODE", "ELBO", "independent pixels", "mixture of categoricals"], "too many dimensions"
    assert left_out(images, options) == [
        "Gaussian mixture: left out, 2 dimensions are more than 1",
        "autoregressive forest: left out, 2 dimensions are more than 1",
    ]
    none = EvaluationConfig(images=9, tolerance=1e-2, elbo_draws=2, baselines=False)
    assert (list(measured(model, images, tmp_path, none)), left_out(images, none)) == (["PF-ODE", "ELBO"], [])


def test_what_is_fitted_is_kept_by_its_images_and_mended_where_damaged(images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data, fits = images.images, []

    def measure(name, test, validation=data.validation):
        (model,) = [m for m in classical_models(data.train, validation, LEVELS) if m.name == name]

        def counted(x, rows, progress):
            fits.append(name)
            return model.measure(x, rows, progress)

        rows = torch.arange(len(test))
        return measure_classical(replace(model, measure=counted), data.train, validation, test, rows)

    for count, name in enumerate(CLASSICAL, start=1):
        first = measure(name, data.test)
        again = measure(name, data.test)
        assert fits == CLASSICAL[:count]
        assert again.log_prob.tolist() == first.log_prob.tolist()
        assert (again.protocol, again.kind, again.seconds) == (first.protocol, first.kind, first.seconds)
        assert again.error_budget == first.error_budget
    other = measure("independent pixels", data.test[:7])
    assert other.log_prob.tolist() == measure("independent pixels", data.test).log_prob[:7].tolist()
    assert len(fits) == 5
    measure("independent pixels", data.test, data.validation[1:])
    assert len(fits) == 6, "other validation images are another question"
    kept = sorted((tmp_path / "diffusion" / "classical").glob("autoregressive-forest-*.json"))
    for damage in ("", "{}", kept[0].read_text().replace('"images": 40', '"images": 41')):
        kept[0].write_text(damage)
        before = len(fits)
        assert len(measure("autoregressive forest", data.test)) == 40
        assert len(fits) == before + 1


def test_a_toy_is_measured_in_nats_beside_the_truth(tmp_path):
    toy = load_toy("gaussians")
    facts = DataFacts("gaussians", (2,), None, 0)
    denoiser = exact.GaussianMixture(toy.means, toy.stds, VP(), toy.weights)
    model = DiffusionModel(denoiser, toy_config(tmp_path), facts)
    options = EvaluationConfig(images=50, tolerance=1e-4, elbo_draws=64)
    found = measured(model, Data(facts, toy=toy), tmp_path, options)
    assert list(found) == ["PF-ODE", "ELBO", "true density"]
    truth = found["true density"]
    assert (truth.kind, truth.levels) == ("exact", None)
    assert torch.allclose(found["PF-ODE"].log_prob, truth.log_prob, atol=0.02), "the exact denoiser of the toy"
    # the bound is tight for the exact denoiser, but for its own randomness
    assert float(found["ELBO"].log_prob.mean()) == pytest.approx(float(truth.log_prob.mean()), abs=0.3)
    x = toy.draw(50, seed=1 << 31)
    assert torch.allclose(truth.log_prob, toy.log_prob(x).double()), "fresh draws, not those of training"


def test_the_same_figures_are_in_the_json_the_csv_and_the_summary(tmp_path, estimates):
    found, _ = estimates
    evaluation.write(tmp_path, found, seconds=12.5)
    written = json.loads((tmp_path / runs.EVALUATION).read_text())
    assert written["training_seconds"] == 12.5
    assert list(written["estimates"]) == list(found)
    with open(tmp_path / "evaluation.csv", newline="") as file:
        rows = {row["estimate"]: row for row in csv.DictReader(file)}
    for name, estimate in found.items():
        interval = estimate.mean()
        entry = written["estimates"][name]
        assert entry["bits_per_dim"] == pytest.approx(interval.mean)
        assert entry["interval_95"] == pytest.approx([interval.low, interval.high])
        assert torch.allclose(torch.tensor(entry["log_prob"], dtype=torch.float64), estimate.log_prob)
        assert float(rows[name]["bits_per_dim"]) == pytest.approx(interval.mean)
        assert rows[name]["kind"] == entry["kind"] == estimate.kind
        assert rows[name]["law"] == entry["law"] == entry["protocol"]["law"] == estimate.law
        values = summary(estimate)
        assert values["eval/bits_per_dim"] == interval.mean
        assert (values["eval/bits_per_dim_low"], values["eval/bits_per_dim_high"]) == (interval.low, interval.high)
        assert (values["eval/images"], values["eval/kind"], values["eval/law"]) == (40, estimate.kind, estimate.law)
        assert values["eval/protocol"] == describe(estimate)
        assert all(isinstance(value, int | float | str) for value in values.values())


def test_the_protocol_is_one_short_line(estimates):
    line = describe(estimates[0]["PF-ODE"])
    assert "\n" not in line
    assert len(line) < 400
    assert "0.001" in line, "the tolerance"


def test_the_table_says_which_bound_it_is(estimates):
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report.likelihood_table(estimates[0]))
    page = capture.get()
    assert max(map(len, page.splitlines())) <= 80
    assert "bits/dim" in page
    for name, estimate in estimates[0].items():
        assert f"{estimate.mean().mean:.4f}" in page
        interval = estimate.mean()
        assert f"{interval.low:.4f} to {interval.high:.4f}" in page, "in one piece"
        assert re.search(f"^{name} ", page, re.M)
        assert re.search(f"^{name}: .* s, estimator", page, re.M), "its cost and protocol, in a line of its own"
    assert "upper bound" in page, "a lower bound of log p is an upper bound of bits/dim"
    assert "lower bound" not in page


def test_one_image_has_no_interval_and_the_files_say_so(tmp_path):
    zero = torch.zeros(1, dtype=torch.float64)
    evaluation.write(tmp_path, {"PF-ODE": Estimate(zero - 3.0, 2, LEVELS, zero, "exact", {})}, 0.0)
    entry = json.loads((tmp_path / runs.EVALUATION).read_text())["estimates"]["PF-ODE"]
    assert entry["bits_per_dim"] == pytest.approx(3 / (2 * math.log(2)))
    assert entry["interval_95"] == [None, None]


def test_a_baseline_that_fails_leaves_the_figures_of_the_model(images, model, monkeypatch, capsys, tmp_path):
    def fails(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(evaluation, "measure_classical", fails)
    found = measured(model, images, tmp_path, EvaluationConfig(images=9, tolerance=1e-2, elbo_draws=2))
    assert list(found) == ["PF-ODE", "ELBO"]
    assert "independent pixels: not measured (RuntimeError: no room)" in capsys.readouterr().err
