"""Quality against cost: cells cost what they say, distances and orders are right, and nothing is measured twice."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from laws import F64

from diffusion import samplers
from diffusion.commands.app import ProgressBar, command
from diffusion.commands.dispatch import main
from diffusion.commands.tradeoff import cells as tradeoff_cells
from diffusion.commands.tradeoff.arguments import parse_tradeoff_arguments
from diffusion.commands.tradeoff.cells import Bench, Cell, Measured, plan, steps_within
from diffusion.commands.tradeoff.picture import picture
from diffusion.commands.tradeoff.report import COLUMNS, Row, in_rows, verdict
from diffusion.commands.tradeoff.subjects import load
from diffusion.samplers import ODE
from diffusion.sampling import fit

CPU = torch.device("cpu")
EXACT = "exact:mixture-2d"


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """The reference of an exact model is small: what FID and KID find is of tests/metrics."""
    monkeypatch.setattr("diffusion.commands.tradeoff.subjects._DRAWS", 1000)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(*argv):
        options = parse_tradeoff_arguments([EXACT, "--wandb", "off", *argv])
        return Bench(load(options, CPU, ProgressBar()), options, CPU)

    return make


@pytest.fixture
def tradeoff(tmp_path, monkeypatch, capsys):
    """Run the command in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = command(main, ["tradeoff", *argv, "--wandb", "off"])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def without_charts(monkeypatch):
    """For tests that do not look at them."""
    for name in ("picture", "exposure_picture"):
        monkeypatch.setattr(f"diffusion.commands.tradeoff.tradeoff.{name}", lambda *_: None)


def test_the_fitted_sampler_is_measured_where_it_can_be_made(tradeoff, without_charts, quick_tuning, monkeypatch):
    """A budget is its steps, from 2 to 10; it is fitted once, whatever the grid of the others."""
    monkeypatch.setattr(fit, "_ROWS", 64)
    argv = (EXACT, "--samplers", "adams", "fitted", "--budgets", "3", "20", "--n", "32", "--grid", "auto")
    assert tradeoff(*argv)[0] == 0
    folder = Path("evaluations/mixture-2d/tradeoff")
    with (folder / "tradeoff.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["sampler"] == "fitted"]
    assert [(row["steps"], row["nfe"]) for row in rows] == [("3", "3.0")]
    assert 0.0 < float(rows[0]["distance"]) < 0.3
    monkeypatch.setattr(fit, "fit_sampler", None)
    assert tradeoff(*argv)[0] == 0, "kept"


@pytest.fixture(scope="module")
def folder_of_all(tmp_path_factory):
    """Where the accurate solution is kept for every sampler."""
    return tmp_path_factory.mktemp("cells")


@pytest.mark.parametrize("name", samplers.names())
def test_a_cell_costs_no_more_than_its_budget(name, bench, folder_of_all, monkeypatch):
    monkeypatch.chdir(folder_of_all)
    made = bench("--n", "8")
    for count, cell in enumerate(plan([name], [5, 10])[0][:2], 1):
        found = made.measured(cell)
        assert made.fresh == count
        assert found.failure is None
        sampler = samplers.build(name)
        if sampler.is_adaptive:
            assert cell.steps is None
            continue
        assert found.nfe <= (5 if steps_within(sampler, 5) == cell.steps else 10)
        assert found.nfe == (cell.steps - 1) * sampler.evaluations_per_step + sampler.starting_evaluations + 1
        assert (found.distance is None) == sampler.is_stochastic


def test_budgets_too_small_have_no_cell():
    assert plan(["dpm-solver-3"], [2, 3]) == [[]]
    assert [cell.steps for cell in plan(["ddim"], [50, 5, 5])[0]] == [5, 50]


def test_the_distance_is_to_the_probability_flow(bench):
    made = bench("--n", "16")
    schedule = made.subject.denoiser.schedule
    grid = torch.tensor([schedule.t_max, schedule.t_min, 0.0], dtype=F64)
    from diffusion.sampling.sample import sample

    exact = sample(made.subject.denoiser, 16, ODE("dopri8", 1e-11, 50_000), grid=grid, dtype=F64)
    assert float((made.tight() - exact).abs().max()) < 1e-5
    x = sample(made.subject.denoiser, 16, "ddim", 10, dtype=F64)
    assert made.measured(Cell("ddim", 10, None)).distance == pytest.approx(
        float((x - exact).square().mean().sqrt()), rel=1e-3
    )


def test_first_order_is_observed_and_heun_diverges_at_few_steps(bench):
    """The two claims of docs/choosing-a-sampler.md that need no table."""
    made = bench("--n", "64")
    rows = in_rows([made.measured(Cell("ddim", steps, None)) for steps in (81, 321)])
    assert rows[0].order is None
    assert rows[1].order == pytest.approx(1.0, abs=0.15)
    heun, ddim = (made.measured(Cell(name, steps, None)) for name, steps in (("heun", 3), ("ddim", 5)))
    assert heun.nfe == ddim.nfe == 5
    assert heun.distance > 10 * ddim.distance
    assert heun.excess > 100 * ddim.excess


def test_a_command_that_was_cut_off_goes_on(tradeoff, monkeypatch, drawn):
    argv = (EXACT, "--n", "16", "--samplers", "ddim", "sde", "ode", "--budgets", "5", "10")
    code, out, _ = tradeoff(*argv)
    assert code == 0
    assert "cheapest within 2 % of the best" in out
    folder = Path("evaluations/mixture-2d/tradeoff")
    assert {path.suffix for path in folder.glob("tradeoff.*")} == {".md", ".csv", ".json", ".png"}
    assert (folder / "exposure.png").is_file()
    kept = json.loads((folder / "tradeoff.json").read_text())["rows"]
    assert {row["exposure"] is None for row in kept} == {False}
    cells = sorted(folder.glob("cells/*.json"))
    rows = list(csv.DictReader((folder / "tradeoff.csv").read_text().splitlines()))
    assert len(cells) == len(rows) >= 5
    assert json.loads((folder / "tradeoff.json").read_text())["protocol"]["n"] == 16
    cells[0].unlink()
    cells[1].write_text("{")
    drawn = []
    honest = tradeoff_cells.sample
    monkeypatch.setattr(tradeoff_cells, "sample", lambda *a, **k: drawn.append(a[2]) or honest(*a, **k))
    assert tradeoff(*argv)[0] == 0
    assert len(drawn) == 2, "only the two that were lost"
    again = list(csv.DictReader((folder / "tradeoff.csv").read_text().splitlines()))
    assert [{**row, "seconds_an_image": ""} for row in again] == [{**row, "seconds_an_image": ""} for row in rows]
    assert tradeoff(*argv[:2], "17", *argv[3:])[0] == 0
    assert len(drawn) > 2 + len(rows), "another protocol is another question"


def test_a_trained_run(diffusion_command):
    Path("runs").rename("elsewhere")
    code, out, err = diffusion_command(
        "tradeoff", "digits-0001", "--runs", "elsewhere", "--n", "8", "--samplers", "ddim", "--budgets", "5",
        "--wandb", "offline",
    )  # fmt: skip
    assert code == 0, err
    assert out.splitlines()[-1].endswith(" sample --run digits-0001 --runs elsewhere")
    assert "train images of digits" in " ".join(out.split())  # wherever lines break
    folder = Path("elsewhere/digits-0001/tradeoff")
    (row,) = csv.DictReader((folder / "tradeoff.csv").read_text().splitlines())
    assert float(row["fid"]) > 0
    assert float(row["distance"]) > 0
    assert row["excess_nats"] == ""
    assert list(folder.glob("wandb/offline-run-*"))


def _found(sampler, nfe, fid, sem=0.0, distance=None, steps=5):
    return Measured(Cell(sampler, steps, None), nfe, 0.001, distance, fid, sem, fid, sem, median=distance)


def test_the_verdict():
    rows = [Row(_found("a", 5.0, 2.0), None), Row(_found("a", 10.0, 1.01), None), Row(_found("b", 50.0, 1.0), None)]
    assert verdict(rows, "fid") == (
        "cheapest within 2 % of the best: a, 10 evaluations (FID 1.01); the best is b, 50 evaluations (FID 1)"
    )
    rows = [Row(_found("a", 5.0, 1.4), None), Row(_found("b", 50.0, 1.0, 0.5), None)]
    line = verdict(rows, "fid")
    assert line.startswith("cheapest within 2 % of the best: b, 50 evaluations")
    assert line.endswith("within it: a, 5 evaluations (FID 1.4)")
    assert "no cell" in verdict(rows, "distance")


def test_the_order_is_of_the_intervals_walked():
    coarse, fine = _found("a", 5.0, 1.0, distance=0.16, steps=5), _found("a", 17.0, 1.0, distance=0.01, steps=17)
    assert in_rows([coarse, fine])[1].order == pytest.approx(2.0)
    assert in_rows([_found("a", 5.0, 1.0), fine])[1].order is None


def test_the_picture(drawn):
    rows = [Row(_found("a", 5.0, 2.0, 0.1, 0.3), None), Row(_found("b", 50.0, 1.0, 0.1, None), None)]
    image = picture(rows, "title")
    assert image is not None
    assert min(image.size) > 300
    assert len({image.getpixel((x, y)) for x in range(0, image.width, 3) for y in range(0, image.height, 3)}) > 5
    assert picture([Row(Measured(Cell("a", 5, None), 5.0, 0.1, failure="not finite"), None)], "title") is None


def test_states_that_are_not_finite_are_said_to_be(bench, monkeypatch):
    made = bench("--n", "8")
    made.tight()
    monkeypatch.setattr(tradeoff_cells, "sample", lambda *a, **k: torch.full((8, 2), math.nan, dtype=F64))
    found = made.measured(Cell("ddim", 5, None))
    assert found.failure == "8 of 8 samples are not finite"
    assert found.failure in [column.text(Row(found, None).values()) for column in COLUMNS]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["exact:mixture-3d"], ["exact", "mixture-3d", "Did you mean 'mixture-2d'?"]),
        ([EXACT, "--samplers", "dimm"], ["sampler", "dimm", "Did you mean 'ddim'?"]),
        ([EXACT, "--features", "mnist"], ["--features", "their own features"]),
        ([EXACT, "--budgets", "1", "--samplers", "ddim"], ["--budgets", "two steps"]),
        ([EXACT, "--n", "4"], ["--n: found 4"]),
        ([EXACT, "--grid", "log-srn", "--samplers", "ddim"], ["log-srn", "Did you mean 'log-snr'?"]),
        ([EXACT, "--data", "images"], ["--data", "exact:mixture-2d", "leave it out"]),
        (["no-such-run"], ["no-such-run"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_are_one_line(argv, words, tradeoff):
    code, _, err = tradeoff(*argv)
    assert code == 2
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_what_a_trade_off_replaces_is_told(tradeoff, without_charts):
    quick = (EXACT, "--n", "8", "--budgets", "3")
    note = "note: evaluations/mixture-2d/tradeoff held a trade-off of {}, which is now replaced\n"
    both = (*quick, "--samplers", "ddim", "deis")
    assert tradeoff(*both)[::2] == (0, "")
    assert tradeoff(*both)[::2] == (0, ""), "the same figures"
    assert tradeoff(*both, "--budgets", "3", "4")[::2] == (0, ""), "these and others"
    cells = "ddim at 3 steps, ddim at 4 steps, deis at 2 steps, deis at 3 steps"
    assert tradeoff(*quick, "--samplers", "deis")[::2] == (0, note.format(cells))
    other_noise = tradeoff(*quick, "--samplers", "deis", "--seed", "1")
    assert other_noise[::2] == (0, note.format("deis at 2 steps"))
    Path("evaluations/mixture-2d/tradeoff/tradeoff.json").write_text("[1]")
    assert tradeoff(*quick, "--samplers", "deis")[::2] == (0, "")


def test_a_place_that_takes_no_figures_is_told_before_anything_is_drawn(tradeoff, monkeypatch):
    Path("evaluations").write_text("")  # in the way of the folder
    monkeypatch.setattr(Bench, "measured", None)
    code, out, err = tradeoff(EXACT, "--n", "8")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "evaluations/mixture-2d/tradeoff: results cannot be stored there (Not a directory)" in err


def test_the_exposure_of_an_exact_model_is_its_solvers_alone(bench):
    """The second moment is that of the mixture; it is 1 at the end of an accurate solve, and less of ten DDIM steps."""
    made = bench("--n", "512")
    model = made.subject.denoiser
    drawn = model.draw(200_000, 3)
    assert made.subject.second_moment == pytest.approx(float(drawn.square().mean()), rel=0.01)
    fine, coarse = (made.measured(Cell(name, steps, None)).exposure for name, steps in (("abm", 60), ("ddim", 5)))
    assert len(fine) == 60
    assert fine[-1][0] is None
    for _, ratio, error in fine:
        assert abs(ratio - 1.0) < 4.5 * error + 0.01
    assert coarse[-1][1] < 0.97
    kept = made.measured(Cell("ddim", 5, None))
    assert list(kept.exposure) == coarse  # from its file
