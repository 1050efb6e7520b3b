"""The page and the curves: every number is an estimate's own, and the page stands by itself."""

import io
import math
import re
import subprocess
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion.commands.compare import exports, figures, tables
from diffusion.commands.compare.compare import _about
from diffusion.commands.compare.comparison import gaps
from diffusion.commands.compare.content import Content, name_of
from diffusion.commands.compare.curves import curve_of, overfit, pair_curves, parts_of
from diffusion.commands.compare.groups import group
from diffusion.commands.compare.page import page, without_curve
from diffusion.commands.records import Protocol, read, write
from diffusion.commands.terminal import note_replaced
from diffusion.data.charts import LONGEST, SCALE, short_name
from diffusion.likelihood import Estimate

CHROMIUM = Path("/usr/bin/chromium")
BINS, ENDS = 6, [-3.0, 9.0]


def bound(folder, run, split, seed, n=40, family="diffusion", budget=None, draws=8):
    """An ELBO with terms, written and read back as `evaluate` does; an autoencoder's has no diffusion term."""
    generator = torch.Generator().manual_seed(seed)
    curve = -torch.rand(n, BINS, generator=generator, dtype=torch.float64) - 1.0
    terms = {
        "prior": -torch.rand(n, generator=generator, dtype=torch.float64),
        "reconstruction": 2.0 * torch.rand(n, generator=generator, dtype=torch.float64),
    }
    protocol = {"estimator": "ELBO, latent variables"}
    if family == "diffusion":
        terms |= {"diffusion": curve.sum(1), "curve": curve}
        protocol = {"estimator": "ELBO, continuous time", "evaluations": draws, "curve_log_snr": ENDS}
    log_prob = sum(term for name, term in terms.items() if name != "curve")
    estimate = Estimate(
        log_prob, 4, 17, torch.zeros_like(log_prob), "lower bound", protocol, error_budget=budget or {}, terms=terms
    )
    data = {"name": "digits", "split": split, "images": n, "levels": 17, "sha256": split}
    model = {"run": run, "family": family, "parameters": 10, "data": "digits"}
    question = Protocol(data, f"weights of {run}", "elbo", {"evaluations": draws})
    return write(folder / run, question, model, estimate), estimate


@pytest.fixture
def content(tmp_path):
    """Two denoisers, one of them also measured on training images, and an autoencoder."""
    a, _ = bound(tmp_path, "a", "test", 0, budget={"noise": 0.02, "data end": 0.0003})
    few, _ = bound(tmp_path, "a", "test", 5, draws=3)
    trained, _ = bound(tmp_path, "a", "train", 1, n=50)
    b, _ = bound(tmp_path, "b", "test", 2, budget={"solver & co": 0.001})
    vae, _ = bound(tmp_path, "v", "test", 3, family="vae", budget={"samples": 0.01})
    groups = group([a, few, b, vae])
    rows = [row for each in groups for row in each.rows]
    both = gaps(rows, {"a": [a, few, trained], "b": [b], "v": [vae]})
    return Content("title", "about", groups, both, pair_curves(rows, both))


def test_a_comparison_that_would_be_replaced_is_named(content, tmp_path, capsys):
    path = tmp_path / "comparison.json"

    def told(new) -> str:
        note_replaced(path, exports.json_text(new), "a comparison", _about)
        return capsys.readouterr().err

    assert told(content) == ""
    path.write_text(exports.json_text(content))
    assert told(content) == "", "the same again"
    names = ", ".join(dict.fromkeys(row.model["run"] for row in content.rows if row.model["family"] != "classical"))
    for other in (replace(content, groups=content.groups[1:]), replace(content, title="Likelihood of other images")):
        assert f"held a comparison of {names}, which is now replaced" in told(other)
    path.write_text("damaged")
    assert told(content) == ""


def test_a_curve_is_the_mean_over_images_with_its_error(tmp_path):
    evaluation, estimate = bound(tmp_path, "a", "test", 0)
    found = curve_of(evaluation)
    width = (ENDS[1] - ENDS[0]) / BINS
    bits = -estimate.terms["curve"] / (4 * math.log(2.0)) / width
    assert torch.allclose(found.density, bits.mean(0))
    assert torch.allclose(found.sem, bits.std(0) / math.sqrt(40))
    assert (found.edges[0], found.edges[-1], len(found.edges)) == (*ENDS, BINS + 1)
    assert curve_of(read(next((tmp_path / "a").glob("*.json")))).density.tolist() == found.density.tolist()
    # the curve integrates to the diffusion term, and the terms add up to the figure
    parts = parts_of(evaluation)
    assert float(found.density.sum() * width) == pytest.approx(parts["diffusion"])
    assert sum(parts.values()) == pytest.approx(estimate.mean().mean)


def test_models_without_log_snr_have_parts_but_no_curve(tmp_path):
    evaluation, estimate = bound(tmp_path, "v", "test", 0, family="vae")
    assert curve_of(evaluation) is None
    assert set(parts_of(evaluation)) == {"prior", "reconstruction"}
    assert parts_of(evaluation)["prior"] == pytest.approx(-float(estimate.terms["prior"].mean()) / (4 * math.log(2.0)))


def test_test_and_train_make_a_pair_and_their_difference_is_unpaired(content):
    first, second = sorted(content.curves, key=lambda pair: pair.name)
    assert (first.name, first.test.images, first.train.images) == ("a", 40, 50)
    assert (second.train, overfit(second)) == (None, None)
    assert without_curve(content) == "v"
    lost = overfit(first)
    for i, interval in enumerate(lost):
        assert interval.mean == pytest.approx(float(first.test.density[i] - first.train.density[i]))
        sem = math.hypot(float(first.test.sem[i]), float(first.train.sem[i]))
        assert interval.high - interval.mean == pytest.approx(1.959964 * sem)
    values = exports.curve_values(content)
    assert len(values) == 3 * BINS
    assert {row["test_minus_train"] is None for row in values if row["run"] == "b"} == {True}


class Parsed(HTMLParser):
    """Tables as lists of texts, images, and every address on the page."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.images, self.scopes, self.addresses, self.open = {}, [], [], [], []
        self.table = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.addresses += [found[key] for key in ("src", "href") if key in found]
        if tag == "img":
            self.images.append(found)
        if tag == "div":
            self.table = self.tables.setdefault(found["aria-label"], [])
        if tag == "th":
            self.scopes.append(found.get("scope"))
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append("")
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "every element is closed"

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.table[-1][-1] += data


def test_the_page_shows_the_estimates_and_stands_by_itself(content):
    charts = {
        "bits_per_dim": figures.intervals(content),
        "curves": figures.curves(content),
        "error_budgets": figures.budgets(content),
    }
    grid = Image.new("RGB", (5, 4), "white")
    parsed = Parsed(page(content, charts, {"a": grid}, {"a (elbo)": grid}))
    assert parsed.open == []
    main = parsed.tables["Likelihoods"]
    names = [column.name for column in tables.NARROW]
    assert main[0] == names
    named = [line for line in main if len(line) == len(main[0]) and line[0] in ("a", "b", "v")]
    assert len(named) == len(content.rows)
    for line, (_, row, _) in zip(named, content.lines(), strict=True):
        interval = row.estimate.mean()
        shown = dict(zip(names, line, strict=True))
        assert shown["bits/dim ± 95 %"] == tables.half_width(interval, sign=False)
        assert (shown["model"], shown["method"]) == (row.model["run"], row.protocol.method)
    for each in content.groups:
        assert any(each.why in cell for line in main for cell in line), "the page says why groups are apart"
    # every cause, whatever it is called, of the row that has it
    head, *lines = parsed.tables["Error budgets, bits/dim"]
    by_name = {(line[0], cause): text for line in lines for cause, text in zip(head, line, strict=True)}
    assert {"noise", "data end", "solver & co", "samples", "test set", "total"} <= set(head)
    assert by_name["b (elbo)", "solver & co"] == "0.0010"
    assert by_name["v (elbo)", "noise"] == "—"
    for row in content.rows:
        assert by_name[name_of(row), "test set"] in {f"{r.estimate.mean().sem:.4f}" for r in content.rows}
    parts = parsed.tables["Terms of the bounds, bits/dim"]
    assert next(line for line in parts if line[0] == "v (elbo)")[3] == "—", "no diffusion term"
    (gap,) = content.gaps
    assert parsed.tables["Test against train"][1][-1] == tables.half_width(gap.difference)
    # self-contained, accessible
    assert {address[:22] for address in parsed.addresses} == {"data:image/png;base64,"}
    assert set(parsed.scopes) == {"col", "row", "colgroup"}
    assert next(iter(parsed.tables)) == "Likelihoods"
    assert len(parsed.images) == 5
    for image in parsed.images:
        assert len(image["alt"]) > 4
        size = Image.open(io.BytesIO(b64decode(image["src"].split(",")[1]))).size
        assert size in {(int(image["width"]) * k, int(image["height"]) * k) for k in (1, SCALE)}


def many_models(folder, count=30):
    """A comparison of many models with long names, two groups, and no images."""
    rows = [
        bound(folder, f"{'a-name-that-is-as-long-as-people-make-them-' * (i % 2)}{i:02d}", "test", i, n=20)[0]
        for i in range(count - 4)
    ]
    rows += [bound(folder, f"<i>&{i}", "test", i, n=20, family="vae")[0] for i in range(4)]
    return Content("Likelihood of 20 test images", "about", group(rows))


def test_a_bar_is_the_interval_on_one_axis_for_all_rows(content):
    text = page(content, {}, {}, {})
    low, high = figures.span(content)
    bars = re.findall(r'<svg class="bar" width="132".*?</svg>', text)
    thickness = float(re.search(r"svg\.bar line \{ stroke-width: (\d+);", text)[1])
    assert len(bars) == len(content.rows)
    for bar, row in zip(bars, content.rows, strict=True):
        interval = row.estimate.mean()
        (mean,) = map(float, re.findall(r'cx="([\d.]+)"', bar))
        ends = [float(x) for x in re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', bar)[0]]
        for place, value in zip((mean, *ends), (interval.mean, interval.low, interval.high), strict=True):
            assert low + (place - 6) / 120 * (high - low) == pytest.approx(value, abs=(high - low) / 1000)
        dot = float(re.search(r' r="([\d.]+)"', bar)[1])
        assert 2 * dot + 1 < thickness, "the mean with its edge hides no interval, however narrow that is"
    # pointing at a row says its protocol
    titles = re.findall(r'<tr[^>]* title="([^"]*)"', text)
    assert len(titles) == len(content.rows)
    assert all("; protocol: " in title for title in titles)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
def test_headings_sort_the_rows_of_each_group(tmp_path):
    content = many_models(tmp_path)
    click = "document.querySelectorAll('table')[0].querySelectorAll('thead button')[{}].click();"
    column = [c.name for c in tables.NARROW].index(tables.FIGURE)

    def shown(clicks):
        script = "<script>" + "".join(map(click.format, clicks)) + "</script>"
        (tmp_path / "page.html").write_text(page(content, {}, {}, {}).replace("</body>", f"{script}</body>"))
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        done = subprocess.run(
            [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
             f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        groups = []
        for row in re.findall(r"<tr.*?</tr>", done.stdout.partition("<h2>")[0], re.S):
            if 'class="group"' in row:
                groups.append([])
            elif "protocol" in row.partition(">")[0] and 'class="protocol"' in row:
                assert groups[-1], "a protocol stays below its row"
            elif groups:
                cells = re.findall(r"<t[hd][^>]*>([^<]*)", row)
                groups[-1].append((cells[0], float(cells[column].split()[0])))
        return groups

    down, names = shown([column, column]), shown([0])
    assert len(down) == len(names) == 2
    for one, other in zip(down, names, strict=True):
        assert [value for _, value in one] == sorted((value for _, value in one), reverse=True)
        assert sorted(one) == sorted(other)
        assert len(one) > 1
        bare = [int(re.search(r"(\d+)$", name)[1]) for name, _ in other if name.isdigit()]
        assert bare == sorted(bare)
    assert sum(map(len, down)) == 30


def test_charts_of_one_image_and_of_odd_names_are_drawn(tmp_path):
    one, _ = bound(tmp_path, "_$x$", "test", 0, n=1)
    content = Content("t", "a", group([one]), (), pair_curves([one], ()))
    for chart in (figures.intervals(content), figures.curves(content), figures.budgets(content)):
        assert chart.width > 400
    assert "nan" not in exports.json_text(content).lower()
    assert short_name("digits-0001 (elbo)") == "digits-0001 (elbo)"
    long = short_name(f"{'long' * 30}-0001 (elbo)")
    assert (len(long), long[:4], long[-11:]) == (LONGEST + 1, "long", "0001 (elbo)")
