"""The table over seeds of benchmarks/results.py: means, spread, and differences paired on the same images."""

import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from diffusion.commands.records import Evaluation, Protocol
from diffusion.likelihood import Estimate

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import results


def evaluation(run, values, family="diffusion", kind="lower bound", data="a"):
    log_prob = torch.as_tensor(values, dtype=torch.float64)
    estimate = Estimate(log_prob, 4, 17, torch.zeros_like(log_prob), kind, {"estimator": "ELBO, continuous time"})
    identity = {"name": "digits", "split": "test", "images": len(log_prob), "sha256": data}
    return Evaluation(
        Protocol(identity, run, "elbo", {}), {"run": run, "family": family, "parameters": 10}, estimate, {}
    )


def figure(name, seeds, seconds=(1.0, 3.0), **options):
    costs = [
        {"images_seen": 640, "training_seconds": s, "training_cpu_seconds": None, "trained_on": "cpu"} for s in seconds
    ]
    return results.Figure(name, [evaluation(name, values, **options) for values in seeds], costs)


def rows(text):
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    )
    return [dict(zip(head, cells, strict=True)) for cells in lines]


def test_means_spread_and_paired_differences():
    noise = torch.randn(4, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shared = 10 * noise[0]
    good = figure("good", [shared + noise[1], shared + noise[2] + 0.3])
    bad = figure("bad", [shared + noise[3] - 2.0, shared - 2.2])
    exact = figure("exact", [shared + 9.0], family="classical", kind="exact")
    few = figure("few", [shared[:20]], seconds=(5.0,), data="b")
    text = results.table([few, bad, exact, good])
    found = {row["model"]: row for row in rows(text)}
    assert [row["model"] for row in rows(text)] == ["exact", "good", "bad", "few"]
    bits = {f.name: torch.stack([e.estimate.bits_per_dim for e in f.evaluations]) for f in (good, bad, exact)}
    for name in ("good", "bad"):
        means = bits[name].mean(1)
        assert float(found[name]["bits/dim, mean"]) == pytest.approx(float(means.mean()), abs=5e-4)
        assert float(found[name]["spread over seeds"]) == pytest.approx(float(means.std()), abs=5e-4)
        assert (found[name]["seeds"], found[name]["images"], found[name]["seconds"]) == ("2", "60", "2")
        assert found[name]["CPU seconds"] == "—", "not known of every seed"
    test = stats.ttest_rel(bits["bad"].mean(0).numpy(), bits["good"].mean(0).numpy())
    low, high = test.confidence_interval(0.95)
    mean = float((bits["bad"] - bits["good"]).mean())
    assert found["bad"]["difference to the best, paired"] == f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    assert found["good"]["difference to the best, paired"] == "best", "of the trained ones"
    assert found["few"]["difference to the best, paired"] == "best", "alone on its images"
    assert (found["exact"]["kind"], found["good"]["kind"], found["good"]["law"]) == (
        "exact",
        "upper bound",
        "reverse SDE",
    )
    assert float(found["exact"]["difference to the best, paired"].split()[0]) < 0
