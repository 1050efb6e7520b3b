"""benchmarks/results.py and its page: tables against SciPy and the records themselves, and the blocks of a page."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import DIGITS as DIGITS_FACTS
from quick_runs import quick_runs
from scipy import stats
from tiny_configs import AUTOENCODER, DIGITS

from diffusion.baselines import classical_set
from diffusion.commands import dispatch
from diffusion.commands.app import command
from diffusion.commands.compare import classical
from diffusion.commands.evaluate.arguments import parse_evaluate_arguments
from diffusion.commands.quality.arguments import parse_quality_arguments
from diffusion.commands.quality.table import Row as QualityRow
from diffusion.commands.records import Evaluation, Protocol
from diffusion.config import load_config
from diffusion.likelihood import Estimate
from diffusion.models.build import DataFacts, build_data, build_model, parameter_count

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import results
import results_page

ROOT = Path(__file__).parents[1]


def evaluation(run, values, family="diffusion", kind="lower bound", data="a", **budget):
    log_prob = torch.as_tensor(values, dtype=torch.float64)
    protocol = {"estimator": "ELBO, continuous time"}
    estimate = Estimate(log_prob, 4, 17, torch.zeros_like(log_prob), kind, protocol, error_budget=budget)
    identity = {"name": "digits", "split": "test", "images": len(log_prob), "sha256": data}
    asked = Protocol(identity, run, "elbo", {"seed": 0, "evaluations": 1000})
    return Evaluation(asked, {"run": run, "family": family, "parameters": 10}, estimate, {})


def figure(name, seeds, seconds=(1.0, 3.0), **options):
    costs = [
        {"images_seen": 640, "training_seconds": None, "training_cpu_seconds": s, "trained_on": "cpu"} for s in seconds
    ]
    return results_page.Figure(name, [evaluation(name, values, **options) for values in seeds], costs)


def rows(text):
    """The rows of the tables of a text."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    )
    return [dict(zip(head, cells, strict=True)) for cells in lines]


def test_means_spread_and_paired_differences():
    noise = torch.randn(4, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shared = 10 * noise[0]
    good = figure("good", [shared + noise[1], shared + noise[2] + 0.3])
    bad = figure("bad", [shared + noise[3] - 2.0, shared - 2.2], seconds=(7.0, None))
    exact = results_page.Figure("exact", [evaluation("exact", shared + 9.0, family="classical", kind="exact")])
    few = figure("few", [shared[:20]], seconds=(5.0,), data="b")
    blocks = results_page.blocks([few, bad, exact, good], [(bad, good), (good, good)], [])
    assert list(blocks) == ["likelihoods", "differences", "budgets"]
    found = {row["model"]: row for row in rows(blocks["likelihoods"])}
    assert list(found) == ["exact", "`good`", "`bad`", "`few`"]
    assert "Trained on: cpu." in blocks["likelihoods"]
    bits = {f.name: torch.stack([e.estimate.bits_per_dim for e in f.evaluations]) for f in (good, bad)}
    for name in ("good", "bad"):
        means, row = bits[name].mean(1), found[f"`{name}`"]
        assert float(row["bits/dim"]) == pytest.approx(float(means.mean()), abs=5e-4)
        assert float(row["spread over seeds"]) == pytest.approx(float(means.std()), abs=5e-4)
        assert (row["seeds"], row["images"], row["images seen"]) == ("2", "60", "640")
        assert (row["figure"], row["kind"], row["law"]) == ("elbo, 1,000 evaluations", "upper bound", "reverse SDE")
        values = bits[name].mean(0).numpy()
        low, high = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
        assert row["95 % interval"] == f"{low:.3f} to {high:.3f}"
    assert [found[f"`{name}`"]["CPU seconds"] for name in ("good", "bad", "few")] == ["2", "—", "5"]
    assert [found["exact"][name] for name in ("figure", "kind", "seeds", "images")] == ["—", "exact", "—", "60"]
    first, same = rows(blocks["differences"])
    low, high = stats.ttest_rel(*(bits[name].mean(0).numpy() for name in ("bad", "good"))).confidence_interval(0.95)
    assert first["difference"] == "`bad` (elbo) - `good` (elbo)"
    assert first["bits/dim"] == f"{float((bits['bad'] - bits['good']).mean()):+.3f}"
    assert first["95 % interval"] == f"{low:+.3f} to {high:+.3f}"
    assert (first["ratio of CPU seconds"], same["ratio of CPU seconds"]) == ("—", "1"), "not known of every seed"


def test_hours_are_told_in_minutes_and_ratios_in_two_digits():
    long, short = (figure(name, [[-1.0, -2.0, -4.0]], (seconds,)) for name, seconds in (("a", 9900.0), ("b", 70.0)))
    assert [row["CPU minutes"] for row in rows(results_page.likelihoods([long, short]))] == ["165", "1"]
    found = [row["ratio of CPU seconds"] for row in rows(results_page.differences([(long, short), (short, long)]))]
    assert found == ["140", "0.0071"]


def test_budgets_are_of_the_figures_of_most_images():
    made = figure("ode", [[-1.0, -2.0, -4.0]], (None,), probes=0.003, draws=0.004, solver=0.02)
    few = figure("few", [[-1.0, -2.0]], (None,), noise=0.5)
    (row,) = rows(results_page.budgets([made, few]))
    spread = stats.sem(np.array([1.0, 2.0, 4.0]) / (4 * np.log(2.0)))
    assert row == {
        "model": "`ode` (elbo)", "probes": "0.0030", "draws": "0.0040", "solver": "0.0200",
        "test set": f"{spread:.4f}", "measurement": "0.0250", "total": f"{spread + 0.02:.4f}",
    }  # fmt: skip


def test_qualities_by_evaluations():
    figures = {"fid": 2.0471, "fid_sem": 0.23, "kid": 0.101, "precision": 0.57, "recall": 0.93, "coverage": 0.16}
    drawn, images = QualityRow("x", 1000, figures, 20.0), QualityRow("y", 990, {"fid": 0.66}, 0.0)
    first, second = rows(results_page.quality([("`x`, guidance 2", drawn), ("images", images)]))
    assert first["FID"] == "2.05 ± 0.23"
    assert list(first.values())[:3] == ["`x`, guidance 2", "20", "1000"]
    assert (second["evaluations"], second["FID"], second["recall"]) == ("—", "0.660", "—")


BEFORE = b"# \xc3\x9c \xff\r\n<!-- a note -->\r\n<!-- digits: likelihoods -->\r"
BETWEEN = b"<!-- end -->\r\n\n\nbetween <!-- end -->\n<!-- digits: budgets -->"
AFTER = b"<!-- end -->  \n<!-- mnist: budgets -->\nkept\n<!-- end -->\nno line feed at the end"
NEW = {"likelihoods": "| ± |", "budgets": "a\nb"}


def test_blocks_are_replaced_and_all_else_stays(tmp_path):
    path = tmp_path / "page.md"
    path.write_bytes(BEFORE + b"\nold | table\n" + BETWEEN + b"\n" + AFTER)
    for _ in range(2):
        path.write_bytes(results_page.replaced(path, "digits", NEW))
        assert path.read_bytes() == BEFORE + "\n\n| ± |\n\n".encode() + BETWEEN + b"\n\na\nb\n\n" + AFTER


BEGIN, OTHER, END = "<!-- digits: likelihoods -->", "<!-- digits: budgets -->", "<!-- end -->"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([BEGIN, END], "found no line <!-- digits: budgets -->"),
        ([BEGIN, END, "<!-- digits: budget -->", END], "where that block begins. Did you mean 'digits: budget'?"),
        ([BEGIN, END, OTHER], "'digits: budgets' has no line <!-- end -->"),
        ([BEGIN, OTHER, END], f"line 2: {OTHER} is within 'digits: likelihoods'"),
        ([BEGIN, END, "", OTHER, END, BEGIN, END], f"line 6: {BEGIN} is there twice"),
        ([BEGIN, END, END, OTHER, END], f"line 3: {END} ends no block"),
        (None, "No such file or directory"),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line_before_anything_runs(tmp_path, capsys, monkeypatch, lines, message):
    monkeypatch.setitem(results.PLANS, "digits", results.Plan({"a": results.Row("digits", ())}, {}))
    path = tmp_path / "page.md"
    if lines is not None:
        path.write_text("\n".join(lines))
    assert command(results.main, ["digits", "--page", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {path}")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "vae-digit"], "--only: 'vae-digit' is not known; accepted: vdm-digits, "),
        (["--only", "vae-digits", "--page", "x.md"], "--only: would leave the other rows out of --page"),
        (["--pages"], "unknown option '--pages'. Did you mean '--page'?"),
        (["--seeds", "0"], "--seeds: found 0; must be at least 1"),
    ],
)
def test_what_is_not_understood_is_one_line(capsys, words, message):
    assert command(results.main, words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_plans_hold_together():
    """Pairs are of rows that are there, on as many images; configurations and commands for samples are understood."""

    def images(method):
        return parse_evaluate_arguments(["x", *method.split()]).images

    for plan in results.PLANS.values():
        figures = {(name, method): (name, images(method)) for name, row in plan.rows.items() for method in row.methods}
        pairs = results.paired(plan, figures)
        assert len(pairs) == len(plan.pairs)
        assert all(first[1] == second[1] for first, second in pairs)
        for name, row in plan.rows.items():
            load_config(row.config, list(row.settings))
            for text in row.samples:
                assert parse_quality_arguments(results.in_run(text, name)[1:]).run == [name]


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_the_page_has_the_blocks_of_its_plan(data):
    page = ROOT / "docs" / "results.md"
    found = results_page.replaced(page, data, dict.fromkeys(results.PLANS[data].blocks, "new"))
    assert found.count(b"\nnew\n") == len(results.PLANS[data].blocks)


@pytest.mark.parametrize(
    ("facts", "small", "vae", "sizes"),
    [
        (DIGITS_FACTS, "vdm-equal-parameters", "vae-digits-tuned", (65_682, 84_543)),
        (DataFacts("mnist", (1, 28, 28), 256, 10), "vdm-mnist-small", "vae-mnist", (513_625, 553_119)),
    ],
)
def test_small_networks_are_as_large_as_the_vae(facts, small, vae, sizes):
    rows_of = results.PLANS[facts.name].rows
    made = (load_config(rows_of[name].config, list(rows_of[name].settings)) for name in (small, vae))
    assert tuple(parameter_count(build_model(config, facts)) for config in made) == sizes


def test_a_page_from_nothing(tmp_path, monkeypatch, capsys):
    """Two recipes of two seeds each, in this process: train, evaluate, draw, compare, and all of it again."""
    plan = results.Plan(
        {
            "net": results.Row(
                "digits", ("--method elbo --draws 2 --images 30 --wandb off",), DIGITS,
                ("quality RUN --steps 2 --samples 24 --eta 0 --wandb off",),
            ),
            "vae": results.Row("vae-digits", ("--method iwae --draws 3 --images 30 --wandb off",), AUTOENCODER),
        },
        {},
        (results.Pair("net", "vae"),),
    )  # fmt: skip
    ran = []

    def here(clock, words):
        ran.append(words)
        words = words[3:] if words[2] == "diffusion" else ["train", *words[2:]]
        assert dispatch.main([*words, *(["--wandb", "off"] if words[0] == "compare" else [])]) == 0

    chosen = classical_set.classical_models
    monkeypatch.setattr(classical, "classical_models", lambda *data: chosen(*data)[:1])
    monkeypatch.setattr(results.Clock, "run", here)
    monkeypatch.setitem(results.PLANS, "digits", plan)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    empty = "".join(f"text\n<!-- digits: {name} -->\n<!-- end -->\n" for name in results_page.BLOCKS)
    Path("page.md").write_text(empty)
    arguments = ["digits", "--seeds", "2", "--page", "page.md", "--out", "out"]
    with quick_runs:
        assert command(results.main, arguments) == 0
    page = Path("page.md").read_text()
    parts = {name: page.split(f"<!-- digits: {name} -->")[1].split("<!-- end -->")[0] for name in results_page.BLOCKS}

    def kept(run, of):
        (path,) = Path("runs", f"{run}-0001", "evaluations").glob(of)
        return json.loads(path.read_text())

    bits = {}
    for row in rows(parts["likelihoods"]):
        if (name := row["model"].strip("`")) in plan.rows:
            records = [kept(f"{name}-seed{seed}", "*.json")["estimate"] for seed in (0, 1)]
            bits[name] = -np.array([record["log_prob"] for record in records]) / (64 * np.log(2.0))
            means = [record["bits_per_dim"] for record in records]
            assert row["bits/dim"] == f"{np.mean(means):.3f}"
            assert row["spread over seeds"] == f"{np.std(means, ddof=1):.3f}"
            config = load_config(plan.rows[name].config, list(plan.rows[name].settings))
            count = parameter_count(build_model(config, build_data(config).facts))
            assert row["parameters"] == f"{count:,}"
            assert (row["images seen"], row["seeds"], row["images"]) == ("48", "2", "30")
        else:
            assert (name, row["kind"]) in {("independent pixels", "exact"), ("PNG", "upper bound")}
    assert set(bits) == set(plan.rows)
    (difference,) = rows(parts["differences"])
    assert difference["difference"] == "`net` (elbo) - `vae` (iwae)"
    assert difference["bits/dim"] == f"{(bits['net'] - bits['vae']).mean():+.3f}"
    budget = {row["model"]: row for row in rows(parts["budgets"])}
    first = kept("net-seed0", "*.json")["estimate"]
    assert budget["`net` (elbo)"]["test set"] == f"{first['error_budget']['test set']:.4f}"
    assert budget["`net` (elbo)"]["measurement"] == f"{first['measurement_error']:.4f}"
    drawn, *scale = rows(parts["quality"])
    assert [(row["samples"], row["evaluations"], row["n"]) for row in scale] == [
        ("test set", "—", "24"),
        ("noise", "—", "24"),
    ]
    record = kept("net-seed0", "quality/*.json")
    assert (drawn["samples"], drawn["evaluations"], drawn["n"]) == ("`net`, eta 0", "2", "24")
    assert float(drawn["FID"].split()[0]) == pytest.approx(record["figures"]["fid"], rel=0.02)
    assert all(part.strip() in Path("out", "seeds.md").read_text() for part in parts.values())
    trained = [words for words in ran if "train.py" in words[1]]
    assert len(trained) == 4
    ran.clear()
    with quick_runs:
        assert command(results.main, arguments) == 0
    assert not [words for words in ran if "train.py" in words[1]], "what is complete is not done again"
    assert Path("page.md").read_text() == page
