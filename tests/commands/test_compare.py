"""compare: the same figures in every file and table, and what cannot be compared in a line."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_evaluations import HOSTILE, evaluation, normal
from rich.console import Console
from terminal_width import fits, next_words
from tiny_configs import _ALL

from diffusion.commands import records
from diffusion.commands.app import command
from diffusion.commands.compare import compare, exports, tables
from diffusion.commands.compare.classical import classical_rows
from diffusion.commands.compare.comparison import gaps, paired_difference
from diffusion.commands.compare.content import Content
from diffusion.commands.compare.groups import group
from diffusion.commands.compare.page import page
from diffusion.commands.dispatch import main
from diffusion.commands.subjects import identify, named_apart
from diffusion.commands.table import Table
from diffusion.commands.terminal import note_replaced
from diffusion.data import ImageData

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def test_hostile_names_stay_text():
    rows = [evaluation(HOSTILE, normal(0), note="<img>"), evaluation("b", normal(1))]
    both = gaps(rows[:1], {HOSTILE: [evaluation(HOSTILE, normal(2), "train")]})
    content = Content(HOSTILE, HOSTILE, group(rows), both, data_sets=[HOSTILE])
    html = page(content, {}, {}, {})
    assert html.count("<script") == 1, "the page's own, which sorts"
    assert "alert" not in html.rpartition("<script>")[2]
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    text = tables.markdown(content).replace(f"# {HOSTILE}", "").replace(f"\n{HOSTILE}\n", "")
    assert "<script" not in text
    row = next(line for line in text.splitlines() if "alert" in line and line.startswith("| A"))
    assert len(re.findall(r"(?<!\\)\|", row)) == len(tables.COLUMNS) + 1, "the bar does not break the table"
    assert HOSTILE in {row["run"] for row in csv.DictReader(Table.of(exports.figures(content)).csv().splitlines())}
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.terminal_tables(content)[0])
    assert HOSTILE in capture.get(), "no markup"


def test_densities_are_in_nats_and_of_rows():
    """Every figure is ln 2 times that of levels, and so the words of every file."""

    def rows(levels):
        made = [evaluation("a", normal(0)), evaluation("b", normal(1), method="elbo", kind="exact")]
        made = [replace(row, estimate=replace(row.estimate, levels=levels), terms={"prior": 1.0}) for row in made]
        return [row.in_its_unit() for row in made]

    contents = [Content("t", "", group(rows(levels))) for levels in (17, None)]
    bits, nats = (exports.figures(content)[0] for content in contents)
    for name in ("", "_low", "_high", "_sem"):
        assert nats[f"nats_per_dim{name}"] == pytest.approx(math.log(2.0) * bits[f"bits_per_dim{name}"], rel=1e-12)
    assert nats["nats_per_dim"] == pytest.approx(-float(normal(0 if nats["run"] == "a" else 1).mean()) / 4, rel=1e-12)
    assert contents[1].rows[0].terms == {"prior": math.log(2.0)}
    for text in (tables.markdown(contents[1]), page(contents[1], {}, {}, {}).partition("<body>")[2]):
        found = text.partition("<script>")[0]
        assert "nats/dim" in found
        assert not re.search(r"bits|[Ii]mages? (?!seen)|grey levels", found)
    named = "test rows: image-moons.npz (my_images.npy, images/a.npz)"
    assert contents[1].words(named.replace("rows", "images", 1)) == named


def test_one_image_has_no_interval_and_no_error():
    content = Content("t", "a", group([evaluation("a", normal(0, 1)), evaluation("b", normal(1, 1))]))
    rows = json.loads(exports.json_text(content))["rows"]
    assert [row["bits_per_dim_low"] for row in rows] == [None, None]
    assert "| — |" in tables.markdown(content)
    assert "nan" not in page(content, {}, {}, {})


def test_classical_rows_are_fitted_once(tmp_path, monkeypatch):
    pixels = (torch.rand(60, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 5).to(torch.uint8)
    data = ImageData("tiny", pixels[:40], None, pixels[40:50], None, pixels[50:], None, 5, 0, False, {})
    identity = identify(data.test, "tiny", "test", 5)
    rows, left_out = classical_rows(tmp_path, data, data.test, identity)
    names = ["independent pixels", "Gaussian mixture", "mixture of categoricals", "autoregressive forest", "PNG"]
    assert ([row.model["run"] for row in rows], left_out) == (names, [])
    assert {len(row.estimate) for row in rows} == {10}
    monkeypatch.setattr("diffusion.baselines.classical.gaussian_mixture", lambda *_: pytest.fail("fitted again"))
    again, _ = classical_rows(tmp_path, data, data.test, identity)
    assert [row.estimate.log_prob.tolist() for row in again] == [row.estimate.log_prob.tolist() for row in rows]
    assert len(group(rows)) == 3
    # without validation images nothing can be chosen, and the table says what it leaves out
    none = replace(data, validation=data.validation[:0])
    rows, left_out = classical_rows(tmp_path, none, data.test, identity)
    assert [row.model["run"] for row in rows] == ["independent pixels", "PNG"]
    assert [line.partition(":")[0] for line in left_out] == names[1:4]
    content = Content("t", "a", group(rows), left_out=left_out)
    assert all(line in tables.markdown(content) and line in page(content, {}, {}, {}) for line in left_out)


def test_what_training_cost_is_in_every_table():
    """Of one row it is known, of the other, as of runs of earlier versions, it is not."""
    known = {"images_seen": 115200, "training_seconds": 201.4, "training_cpu_seconds": 388.2, "trained_on": "cpu, 2"}
    rows = [evaluation("a", normal(0)), evaluation("b", normal(1))]
    rows[0] = replace(rows[0], model={**rows[0].model, **known})
    content = Content("t", "a", group(rows))
    found = {row["run"]: row for row in exports.figures(content)}
    assert {key: found["a"][key] for key in known} == known
    assert {found["b"][key] for key in known} == {None}
    cells = {}
    for line in tables.lines(content):
        cells[line["run"]] = {column.name: column.text(line) for column in tables.COLUMNS}
        narrow = {column.name: column.text(line) for column in tables.NARROW}
        assert narrow["training seconds"] == cells[line["run"]]["training seconds"].partition(" (")[0]
    columns = ("images seen", "training seconds", "trained on")
    assert [cells["a"][column] for column in columns] == ["115,200", "201 (388 CPU)", "cpu, 2"]
    assert [cells["b"][column] for column in columns] == ["—"] * 3
    html = page(content, {}, {}, {})
    assert "115,200" in html
    assert "trained on cpu, 2" in html
    figured, costs = tables.terminal_tables(content)
    assert {"parameters", "images seen", "training seconds"} <= set(costs.names)
    assert {"model (method)", "bits/dim ± 95 %"} <= set(figured.names)


def test_the_tables_of_the_terminal_fit_it_and_break_no_word():
    names = ["vae-digits-0001", "mixture of categoricals", "autoregressive forest"]
    families = ["vae", "classical", "classical"]
    rows = [
        evaluation(name, normal(seed).square() - 3.0 * seed, family=family)
        for seed, (name, family) in enumerate(zip(names, families, strict=True))
    ]
    known = {"images_seen": 512_000, "training_seconds": 1201.4, "parameters": 35_700_000}
    content = Content("t", "a", group([replace(row, model={**row.model, **known}) for row in rows]))
    for table in tables.terminal_tables(content):
        console = Console(width=80)
        with console.capture() as capture:
            console.print(table)
        shown = capture.get()
        assert max(map(len, shown.splitlines())) <= 80
        words = {word for row in [table.names, *map(table.texts, table.rows)] for text in row for word in text.split()}
        assert words <= set(shown.split())
        assert all(shown.count(name) == 1 for name in names), "no row wraps"


@pytest.fixture(scope="module")
def figures(trained, tmp_path_factory):
    """A folder of runs with figures."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("measured") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        for split in ("test", "train"):
            argv = ("--method", "elbo", "--draws", "3", "--images", "20", "--split", split, "--wandb", "off")
            assert command(main, ["evaluate", "digits-0001", "digits-0002", *argv]) == 0
    return folder


@pytest.fixture
def measured(diffusion_command, place, figures):
    shutil.copytree(figures, place / "runs", dirs_exist_ok=True)
    return diffusion_command


def test_the_same_figures_are_in_every_file(measured, monkeypatch, drawn):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = measured("compare", "digits-0001", "digits-0002", "--no-baselines", "--wandb", "offline")
    assert code == 0
    assert "open in a browser: comparison/comparison.html" in " ".join(out.split())
    folder = Path("comparison")
    evaluations = {e.model["run"]: e for run in ("digits-0001", "digits-0002") for e in own_test(run)}
    best, other = sorted(evaluations.values(), key=lambda e: e.estimate.mean().mean)
    assert fits(out), out
    assert next_words(out) == ["sample", "--run", best.model["run"]]
    difference = tables.difference_text(paired_difference(other.estimate, best.estimate))
    html, markdown = ((folder / f"comparison.{kind}").read_text() for kind in ("html", "md"))
    for row, shown in ((best, "best"), (other, difference)):
        interval = row.estimate.mean()
        for text in (row.model["run"], f"{interval.mean:.4f}", tables.interval_text(interval), shown):
            assert text in markdown
        assert tables.half_width(interval, sign=False) in html
        assert tables.half_width(interval, sign=False) in out
    assert tables.half_width(paired_difference(other.estimate, best.estimate)) in html
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    plain = json.loads((folder / "comparison.json").read_text())["rows"]
    for row, line, entry in zip((best, other), rows, plain, strict=True):
        assert line["run"] == entry["run"] == row.model["run"]
        assert float(line["bits_per_dim"]) == entry["bits_per_dim"] == row.estimate.mean().mean
        assert entry["question"]["weights"] == row.protocol.weights
        assert set(entry["error_budget"]) == {"noise", "test set"}
    assert html.count("data:image/png;base64,") == 5, "intervals, curves, error budgets, two grids of samples"
    assert {path.name for path in folder.glob("*.png")} == {"bits_per_dim.png", "curves.png", "error_budgets.png"}
    assert "http" not in html.replace('charset="utf-8"', ""), "self-contained"
    assert "Test against train" in html
    assert "Test against train, unpaired" in out
    (record,) = folder.glob("wandb/offline-run-*")
    (joint,) = record.glob("files/media/table/comparison*.json")
    table = json.loads(joint.read_text())
    place = table["columns"].index("run")
    assert [row[place] for row in table["data"]] == [best.model["run"], other.model["run"]]
    (curves,) = record.glob("files/media/table/curves_*.json")
    assert len(json.loads(curves.read_text())["data"]) == 2 * 2 * 24, "runs, splits, bins"
    assert list(record.glob("files/media/table/charts/bits_per_dim_by_log_snr*.json"))
    assert list(record.glob("files/media/images/curves*.png"))
    (images,) = record.glob("files/media/table/likelihood/digits-test*.json")
    assert [len(row) for row in json.loads(images.read_text())["data"]] == [3] * 20
    assert list(record.glob("files/media/images/bits_per_dim*.png"))


def test_families_stand_side_by_side(place, diffusion_command):
    from diffusion.config import load_config
    from diffusion.training.fit import fit

    tiny = (
        "autoencoder.base_channels=4",
        "autoencoder.latent_dim=2",
        *(word for word in _ALL if "sampling" not in word),
    )
    fit(load_config("vae-digits", [f"runs={place / 'runs'}", *tiny]))
    few = ("--images", "20", "--wandb", "off")
    code, out, _ = diffusion_command("evaluate", "vae-digits-0001", "--draws", "3", *few)
    assert (code, "effective samples" in out) == (0, True)
    assert "importance weights are unreliable for" in out, "three samples of a model that is hardly trained"
    code, out, _ = diffusion_command("evaluate", "digits-0001", "--tolerance", "1e-1", *few)
    assert (code, "unreliable" in out) == (0, False)
    code, _, _ = diffusion_command("compare", "vae-digits-0001", "digits-0001", "--no-baselines", "--wandb", "off")
    assert code == 0
    plain = json.loads(Path("comparison/comparison.json").read_text())
    rows = {row["family"]: row for row in plain["rows"]}
    assert {family: row["method"] for family, row in rows.items()} == {"vae": "iwae", "diffusion": "ode"}
    assert len({row["group"] for row in plain["rows"]}) == 2, "one is of dequantised images"
    assert rows["vae"]["effective_samples"] > 1
    (difference,) = plain["between_groups"]
    gap = abs(rows["vae"]["bits_per_dim"] - rows["diffusion"]["bits_per_dim"])
    assert difference["difference"] == pytest.approx(gap)
    # what is not asked of every family is told
    assert "tolerance" in diffusion_command("evaluate", "vae-digits-0001", "--tolerance", "0.1", *few)[2]


def own_test(run):
    return [e for e in records.read_all(Path("runs") / run) if e.protocol.data["split"] == "test"]


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (["a/runs/x-0001", "b/runs/x-0001"], ["x-0001 (a)", "x-0001 (b)"]),
        (["runs/x-0001", "old/runs/x-0001"], ["x-0001 (runs)", "x-0001 (old/runs)"]),
        (["p/a/q/x-0001", "p/b/c/q/x-0001"], ["x-0001 (a)", "x-0001 (b/c)"]),
        (["x-0001", "deep/x-0001"], ["x-0001 (x-0001)", "x-0001 (deep/x-0001)"]),
    ],
)
def test_runs_of_one_name_are_named_apart_by_their_places(places, told):
    assert named_apart(["x-0001", "x-0001"], [Path("/", place) for place in places]) == told
    names = ["x-0001", "y-0001", "x-0001"]
    assert named_apart(names, [Path("/", place) for place in (places[0], "y", places[1])])[1] == "y-0001"


def test_runs_of_one_name_in_two_folders_are_compared(measured):
    """Each is a row of its own, with its own figures and names."""
    shutil.copytree("runs/digits-0001", "elsewhere/digits-0001")
    shutil.rmtree("elsewhere/digits-0001/evaluations")
    argv = ("--method", "elbo", "--draws", "3", "--images", "20", "--seed", "5", "--wandb", "off")
    assert measured("evaluate", "elsewhere/digits-0001", *argv)[0] == 0
    argv = ("digits-0001", "elsewhere/digits-0001", "--no-baselines", "--wandb", "off", "--out", "apart")
    code, _, err = measured("compare", *argv)
    assert code == 0, err
    rows = json.loads(Path("apart/comparison.json").read_text())["rows"]
    assert {row["run"] for row in rows} == {"digits-0001 (runs)", "digits-0001 (elsewhere)"}
    (own,) = (row["bits_per_dim"] for row in rows if row["run"] == "digits-0001 (elsewhere)")
    (kept,) = records.read_all(Path("elsewhere/digits-0001"))
    assert own == kept.estimate.mean().mean
    shutil.rmtree("elsewhere")


def test_what_cannot_be_compared_is_one_line(measured):
    quiet = ("--no-baselines", "--wandb", "off")
    code, _, err = measured("compare", "digits-0001", "--split", "validation", *quiet)
    assert (code, err.count("\n")) == (2, 1)
    assert "python -m diffusion evaluate digits-0001 --split validation" in err
    code, _, err = measured("compare", "digits-0001", "digits-0001", *quiet)
    assert "named twice" in err
    shutil.rmtree("runs/digits-0002/evaluations")
    argv = ("--method", "elbo", "--draws", "3", "--images", "19", "--wandb", "off")
    assert measured("evaluate", "digits-0002", *argv)[0] == 0
    code, _, err = measured("compare", "digits-0001", "digits-0002", *quiet)
    assert code == 2
    assert "unlike data" in err
    shutil.copy("runs/digits-0001/model.safetensors", "runs/digits-0002/model.safetensors")
    code, _, err = measured("compare", "digits-0002", *quiet)
    assert "not measured yet" in err, "figures of former weights are not those of this model"
    assert not Path("comparison").exists()


def test_a_picture_that_is_none_is_drawn_anew(measured):
    folder = Path("runs/digits-0001/samples")
    folder.mkdir(exist_ok=True)
    (folder / "samples.png").write_bytes(b"<svg onload=alert(1)>")
    code, _, _ = measured("compare", "digits-0001", "--no-baselines", "--wandb", "off", "--out", "elsewhere")
    assert code == 0
    assert "onload" not in Path("elsewhere/comparison.html").read_text()


def test_what_a_comparison_replaces_is_told(tmp_path, capsys):
    def text(*names, images="20 test images of digits"):
        rows = [{"run": name, "family": "diffusion"} for name in names]
        return json.dumps({"images": images, "rows": [*rows, {"run": "histogram", "family": "classical"}]})

    path, told = tmp_path / "comparison.json", "a comparison of {}, which is now replaced\n"
    for kept, new, expected in [
        (None, text("a"), ""),
        ("[1]", text("a"), ""),
        (text("a"), text("a", "b"), ""),
        (text("a", "b", "a"), text("b"), told.format("a, b")),
        (text("a"), text("a", images="30 test images of digits"), told.format("a")),
        (text(*"abcdefgh"), text("b"), told.format("a, b, c, d, e, f and 2 more")),
    ]:
        if kept is not None:
            path.write_text(kept)
        note_replaced(path, new, "a comparison", compare._about)
        assert capsys.readouterr().err == (f"note: {tmp_path} held {expected}" if expected else "")
