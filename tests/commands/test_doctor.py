"""The doctor passes what is right, for every name of the registry, and fails what is planted wrong."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.commands.doctor import doctor, estimators, samplers
from diffusion.commands.doctor.check import Check, attempt, within
from diffusion.commands.doctor.machine import check_machine, check_network
from diffusion.likelihood import measure
from diffusion.samplers import DDIM, Ancestral, names
from diffusion.samplers.sampler import LinearSampler

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sampler_checks():
    return samplers.check_samplers(CPU)


@pytest.fixture(scope="module")
def estimator_checks():
    with pytest.MonkeyPatch.context() as patch:  # a smaller sample, with the larger errors that it states
        for name, value in (("_DATA", 24), ("_DRAWS", 32), ("_STEPS", 50)):
            patch.setattr(estimators, name, value)
        return estimators.check_estimators(CPU)


def test_every_sampler_is_checked_and_passes(sampler_checks):
    assert {check.name for check in sampler_checks} == set(names())
    assert [check for check in sampler_checks if not check.passed] == []
    for name in names():
        what = " ".join(check.what for check in sampler_checks if check.name == name)
        assert "VP" in what
        assert "EDM" in what
        assert "mixture" in what


def test_every_estimator_is_checked_and_passes(estimator_checks):
    assert [check for check in estimator_checks if not check.passed] == []
    found = {check.name for check in estimator_checks}
    for method in measure.METHODS:
        assert f"{method}, levels" in found
    for method in measure.DENSITY_METHODS:
        assert any(name.partition(",")[0] == method and "levels" not in name for name in found)
    assert {"iwae", "ais", "ais, from both sides", "knn entropy", "ode, Hutchinson"} <= found


@dataclass(frozen=True)
class _Boasting(DDIM):
    """Declares an order that it has not."""

    @property
    def order(self):
        return 2


@dataclass(frozen=True)
class _Altered(LinearSampler):
    """A sampler of the SDE whose coefficients are each off by a factor."""

    fresh: float = 1.0
    from_x: float = 1.0

    @property
    def is_stochastic(self):
        return True

    def coefficients(self, schedule, t, s):
        right = Ancestral().coefficients(schedule, t, s)
        return replace(right, fresh=self.fresh * right.fresh, from_x=self.from_x * right.from_x)


@pytest.mark.parametrize(
    ("sampler", "failing"),
    [
        (_Boasting(), ["path", "order"]),
        (_Altered(fresh=1.1), ["deviation"]),
        (_Altered(fresh=0.8), ["deviation"]),
        (_Altered(from_x=1.1), ["mean"]),
    ],
    ids=repr,
)
def test_planted_faults_of_samplers_are_found(sampler, failing):
    wrong = [check.what for check in samplers.check_sampler("x", sampler, CPU) if not check.passed]
    for word in failing:
        assert any(what.startswith(word) for what in wrong), wrong


def test_the_unaltered_sampler_passes():
    assert all(check.passed for check in samplers.check_sampler("x", _Altered(), CPU))


def test_a_biased_estimator_is_found(monkeypatch):
    honest = measure.log_density

    def biased(*arguments, **options):
        estimate = honest(*arguments, **options)
        return replace(estimate, log_prob=estimate.log_prob + 0.01)

    monkeypatch.setattr(measure, "log_density", biased)
    for name, value in (("_latent", lambda device: []), ("_DATA", 24), ("_DRAWS", 32), ("_STEPS", 50)):
        monkeypatch.setattr(estimators, name, value)
    wrong = {check.name for check in estimators.check_estimators(CPU) if not check.passed}
    assert {"ode, exact trace", "ode, Hutchinson"} <= wrong


def test_what_raises_has_failed():
    def body():
        raise RuntimeError("out of luck\nsecond line")

    (check,) = attempt("samplers", "x", body)
    assert not check.passed
    assert check.found == "RuntimeError: out of luck"
    assert not within("g", "n", "w", float("nan"), 0.0, 1.0).passed


def test_machine_and_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checks = [*check_machine(CPU), *check_network(CPU)]
    assert [check for check in checks if not check.passed and check.name != "disk"] == []
    assert any(check.name == "torch" and check.found == torch.__version__.partition("+")[0] for check in checks)
    assert sum(check.group == "network" for check in checks) == 2
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_cannot_be_written_to_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*_):
        raise OSError("read-only file system")

    monkeypatch.setattr("diffusion.storage.atomic.write_text", refused)
    assert [c.found for c in check_machine(CPU) if not c.passed] == ["OSError: read-only file system"]


def _quick(monkeypatch, *passed):
    made = [Check("samplers", f"s{i}", "w", "1", "1", ok) for i, ok in enumerate(passed)]
    for name in ("check_machine", "check_network", "check_estimators"):
        monkeypatch.setattr(doctor, name, lambda device: [])
    monkeypatch.setattr(doctor, "check_samplers", lambda device: made)


@pytest.mark.parametrize(("passed", "code", "words"), [
    ((True, True), 0, "all 2 checks passed"), ((True, False), 1, "1 of 2 checks failed"),
])  # fmt: skip
def test_the_exit_code_tells(passed, code, words, monkeypatch, capsys):
    _quick(monkeypatch, *passed)
    assert command(main, ["doctor", "--device", "cpu"]) == code
    assert words in capsys.readouterr().out
    assert command(main, ["doctor", "--device", "cpu", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is (code == 0)
    assert [check["passed"] for check in found["checks"]] == list(passed)


def test_a_device_that_is_not_there(capsys):
    assert command(main, ["doctor", "--device", "cuda:99"]) == 2
    assert "cuda:99" in capsys.readouterr().err
