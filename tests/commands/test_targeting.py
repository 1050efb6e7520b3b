"""evaluate --target-error: it arrives, says what it spent, is found again; a search cut off goes on where it was."""

import json
from pathlib import Path

import pytest

from diffusion.commands import records
from diffusion.commands.evaluate import measuring

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

EVALUATIONS = Path("runs/digits-0001/evaluations")
ELBO = ("evaluate", "digits-0001", "--method", "elbo", "--draws", "4", "--images", "40", "--wandb", "off")


def figure():
    (path,) = EVALUATIONS.glob("*.json")
    return records.read(path)


def test_it_arrives_says_what_it_spent_and_is_found_again(diffusion_command, monkeypatch):
    code, out, _ = diffusion_command(*ELBO)
    assert code == 0
    measured = figure().estimate.measurement_error
    target = f"{measured / 3:.3g}"
    for path in EVALUATIONS.glob("*.json"):
        path.unlink()
    code, out, err = diffusion_command(*ELBO, "--target-error", target)
    assert (code, err) == (0, "")
    kept = figure()
    assert kept.estimate.measurement_error <= float(target)
    assert kept.protocol.options["evaluations"] >= 9 * 4 / 2
    for words in ("Spent", "pilot", "round 1", f"target error {target} bits/dim: met"):
        assert words in out, words
    assert f"{kept.estimate.measurement_error:.4f}" in out
    assert sorted(path.name for path in EVALUATIONS.iterdir()) == [f"{kept.protocol.name}.json", "targets"]

    monkeypatch.setattr(measuring, "_chunk", lambda *_: pytest.fail("measured again"))
    code, again, _ = diffusion_command(*ELBO, "--target-error", target)
    assert (code, "cached" in again) == (0, True)
    assert f"target error {target} bits/dim: met" in again
    # the figure is an evaluation like any other
    same = ("--draws", str(kept.protocol.options["evaluations"]), "--images", str(len(kept.estimate)))
    assert "cached" in diffusion_command(*ELBO[:4], *same, *ELBO[8:])[1]


def test_a_search_that_was_cut_off_goes_on_where_it_was(diffusion_command, monkeypatch):
    argv = (*ELBO, "--batch-size", "9", "--target-error", "0.01")
    chunk, calls = measuring._chunk, []

    def counted(*arguments):
        calls.append(arguments[2].tolist())
        if len(calls) == 6 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return chunk(*arguments)

    stopped: list[bool] = []
    monkeypatch.setattr(measuring, "_chunk", counted)
    assert diffusion_command(*argv)[0] == 130
    assert not list(EVALUATIONS.glob("*.json"))
    before = calls[:5]
    calls.clear()
    assert diffusion_command(*argv)[0] == 0
    resumed = json.loads(next(EVALUATIONS.glob("*.json")).read_text())["estimate"]
    assert before[0] not in calls, "what was done is not done again"
    assert diffusion_command(*argv, "--again")[0] == 0
    whole = json.loads(next(EVALUATIONS.glob("*.json")).read_text())["estimate"]
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}


def test_a_lost_figure_is_measured_anew(diffusion_command):
    argv = (*ELBO, "--target-error", "5")
    assert diffusion_command(*argv)[0] == 0
    first = figure().estimate
    next(EVALUATIONS.glob("*.json")).write_text("{}")
    code, out, _ = diffusion_command(*argv)
    assert (code, "cached" in out) == (0, False)
    assert figure().estimate.log_prob.tolist() == first.log_prob.tolist()
    assert len(first) == 32, "the pilot was enough"


@pytest.mark.parametrize("target", ["0", "-0.1", "nan", "x"])
def test_a_target_that_is_none_is_one_line(diffusion_command, target):
    code, _, err = diffusion_command(*ELBO, f"--target-error={target}")
    assert (code, err.count("\n")) == (2, 1)
    assert "--target-error" in err


def test_the_budget_of_a_run_is_complete(diffusion_command):
    code, out, _ = diffusion_command(
        "evaluate", "digits-0001", "--images", "8", "--tolerance", "1e-1", "--wandb", "off"
    )
    assert code == 0
    estimate = figure().estimate
    assert set(estimate.error_budget) == {"test set", "probes", "draws", "solver", "data end", "noise end"}
    for cause in (
        "standard error, probes:",
        "error, solver:",
        "error, data end:",
        "total error, including their choice:",
    ):
        assert cause in out, cause
