"""A comparison as a self-contained HTML page: tables, charts and samples, with embedded pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from PIL.Image import Image

from ...data.charts import SCALE
from ...data.pictures import encode
from ...likelihood import Interval
from ..table import Table
from .content import Content
from .figures import span
from .groups import APART
from .tables import (
    BETWEEN,
    FIGURE,
    NARROW,
    PROTOCOL,
    SPLITS,
    budget_table,
    gap_table,
    lines,
    named_for,
    part_table,
    sentences,
)

BUDGETS = (
    "Errors of the mean in bits/dim, by cause. 'test set' is the spread over images and holds the random causes "
    "(noise, probes, draws, samples) already; an end of the path or a solver shifts every image alike, on top of it. "
    "'measurement' is the error of the mean of these very images, 'total' that of all such images."
)
PARTS = (
    "The terms that add up to a bound. The prior's is what is left of the data at the noisy end of the path, or the "
    "divergence of an autoencoder's posterior from its prior; — where a model has no such term."
)
BARS = (
    "The bar next to a figure is its 95 % interval, on one axis for all rows; rings are classical models, an arrow is "
    "one beyond the axis. A click on a heading sorts by it, within the groups."
)
CURVES = (
    "The diffusion term by log-SNR: at which noise levels a model pays. Solid: test; dashed: training images. Where "
    "test lies above train, the model overfits. Models without a log-SNR (—) have no curve: "
)
_STYLE = """
:root { --ink: #1d2025; --pale: #5b616b; --line: #d9dce1; --band: #f3f5f8; --page: #fff; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e8; --pale: #a2a8b1; --line: #3a3f47; --band: #23272e; --page: #15181c; --mark: #56b4e9; }
  figure.chart img { filter: invert(.915) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  max-width: 84rem; margin: 2rem auto 4rem; padding: 0 1.25rem; color: var(--ink); background: var(--page); }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; line-height: 1.25; margin: 2.5rem 0 .5rem; }
p, li { max-width: 52rem; } p { margin: .5rem 0; } .about, figcaption, .why { color: var(--pale); }
.about { overflow-wrap: anywhere; font-size: .85rem; }
.wide { overflow-x: auto; margin: .75rem 0; } .wide:focus { outline: 2px solid var(--mark); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { color: var(--pale); font-weight: 600; vertical-align: bottom; text-wrap: balance; }
tbody th { font-weight: 400; white-space: nowrap; }
th:first-child:not(.group) { position: sticky; left: 0; background: var(--page); }
th.number, td.number { text-align: right; }
td { white-space: nowrap; } tr.best :is(th, td) { font-weight: 650; }
th.group { background: var(--band); white-space: normal; padding-top: .5rem; }
th.group b { color: var(--mark); } th.group strong { color: var(--ink); font-weight: 600; }
.why { display: inline-block; white-space: normal; position: sticky; left: .6rem; font-weight: 400;
  max-width: min(70rem, calc(100vw - 4rem)); }
tr:has(+ tr.protocol) > * { border-bottom: 0; padding-bottom: 0; }
tr.protocol td { font-size: .76rem; line-height: 1.35; padding-top: 0; }
figure { margin: 1rem 1.5rem 1rem 0; display: inline-block; vertical-align: top; max-width: 100%; }
img { max-width: 100%; height: auto; display: block; } figcaption { font-size: .85rem; margin-bottom: .3rem; }
figure.pixels img { image-rendering: pixelated; width: 21rem; }
figure.ranked img { image-rendering: pixelated; width: 34rem; }
svg.bar { display: block; margin: .2rem 0 0 auto; stroke: var(--mark); fill: var(--mark); }
svg.bar line { stroke-width: 9; stroke-opacity: .4; }
svg.bar .axis { stroke: var(--line); stroke-width: 1.6; stroke-opacity: 1; } svg.bar .classical { fill: var(--page); }
thead button { all: unset; cursor: pointer; } thead button:focus-visible { outline: 2px solid var(--mark); }
thead button::after { content: "\\a0\\2195"; opacity: .45; } th[aria-sort] button::after { opacity: 1; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
@media (max-width: 40rem) {
  body { margin-top: 1rem; padding: 0 .75rem; } h1 { font-size: 1.3rem; }
  th, td { padding: .3rem .45rem; }
  tbody th:not(.group) { white-space: normal; overflow-wrap: anywhere; min-width: 6.5rem; max-width: 34vw; }
  figure { margin-right: 0; } .why { max-width: calc(100vw - 3rem); }
}
@media print { .wide { overflow: visible; } thead button::after { content: ""; } }
"""
# Sorts the rows of each group by a column; a protocol stays below its row, and what is not known at the end.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) table.querySelectorAll("thead th").forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const groups = [[]];
    for (const row of [...table.tBodies[0].rows]) {
      if (row.cells[0].classList.contains("group")) groups.push([[row]], []);
      else if (row.classList.contains("protocol")) groups.at(-1).at(-1).push(row);
      else groups.at(-1).push([row]);
    }
    const value = ([row]) => {
      const text = row.cells[column].textContent.trim();
      if (!head.classList.contains("number")) return text;
      return text === "best" ? 0 : parseFloat(text.replaceAll(",", ""));
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (typeof x === "string") return sign * x.localeCompare(y, "en", {numeric: true});
      return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || 0;
    };
    for (const group of groups) table.tBodies[0].append(...group.sort(compare).flat());
  });
});
"""
_BAR = 132, 12  # the size of an interval's bar
_LEAST = 0.6  # the width of an interval, so that it is drawn
_DOT = 1.6  # the radius of its mean, much less than half the height of an interval, which may be as narrow


def page(
    content: Content,
    charts: Mapping[str, Image],
    samples: Mapping[str, Image],
    ranked: Mapping[str, Image],
) -> str:
    """The page.

    Args:
        content: The figures.
        charts: Pictures of `bits_per_dim` (of densities `nats_per_dim`), `curves`, `error_budgets`, and of other data
            sets under their own names.
        samples: Grids of samples by model.
        ranked: The most and the least likely images by row.
    """
    title, words = escape(content.title), content.words
    parts = [f"<h1>{title}</h1>", f'<p class="about">{escape(content.about)}</p>']
    parts += [_main_table(content), _text(BARS), _text(APART)]
    parts += [_list(content.left_out)] if content.left_out else []
    parts += _charts(charts, content.key("bits_per_dim"), "All rows; a panel a group")
    if len(content.groups) > 1:
        parts += ["<h2>Between the groups</h2>", _text(words(BETWEEN)), _list(sentences(content.groups))]
    if content.gaps:
        table = gap_table(content).html("Test against train")
        parts += ["<h2>Test against train</h2>", _text(words(SPLITS)), table]
    parted = part_table(content)
    if parted.rows or content.curves:
        parts.append(f"<h2>{words('Where the bits go')}</h2>")
    if parted.rows:
        parts += [_text(PARTS), parted.html(words("Terms of the bounds, bits/dim"))]
    if content.curves:
        parts.append(_text(words(CURVES) + without_curve(content) + "."))
        parts += _charts(charts, "curves", words("Bits/dim by log-SNR, test and train on one axis"))
    budgets = budget_table(content.rows).html(words("Error budgets, bits/dim"))
    parts += ["<h2>Error budgets</h2>", _text(words(BUDGETS)), budgets]
    parts += _charts(charts, "error_budgets", "The same on one axis")
    if content.data_sets:
        parts += ["<h2>Other data sets</h2>", _list(content.data_sets)]
        shown = [name for name in charts if name not in (content.key("bits_per_dim"), "curves", "error_budgets")]
        parts += [part for name in shown for part in _charts(charts, name, name)]
    if ranked:
        parts += [
            "<h2>Most and least likely images</h2>",
            _text("The ten most likely above, the ten least likely below."),
        ]
        parts += [
            _figure(image, f"{name}: most likely above, least likely below", "ranked") for name, image in ranked.items()
        ]
    if samples:
        parts += ["<h2>Samples</h2>"]
        parts += [_figure(image, name, "pixels", f"Samples of {name}") for name, image in samples.items()]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n</main><script>{_SCRIPT}</script></body></html>\n"
    )


def without_curve(content: Content) -> str:
    """The trained models without a curve, or `none`."""
    drawn = {pair.name for pair in content.curves}
    names = dict.fromkeys(str(row.model["run"]) for row in content.rows if row.model["family"] != "classical")
    return ", ".join(name for name in names if name not in drawn) or "none"


def _main_table(content: Content) -> str:
    """Every row with its protocol, under a heading that says what its group is and why it is separate."""
    table = Table(named_for(content, NARROW), lines(content))
    body, wide, shown = [], f'colspan="{len(NARROW)}"', None
    ends = span(content)
    for line in table.rows:
        group = line["of_group"]
        if group is not shown:
            shown = group
            body.append(
                f'<tr><th class="group" scope="colgroup" {wide}><span class="why">'
                f"<b>{escape(group.letter)}</b> <strong>{escape(group.title)}</strong><br>{escape(group.why)}"
                "</span></th></tr>"
            )
        protocol = f"{PROTOCOL.name}: {PROTOCOL.text(line)}"
        bar = _bar(line["interval"], ends, "classical" if line["family"] == "classical" else "trained")
        style = "best" if line["to_best"] == "best" else ""
        body.append(table.html_row(line, style, f"{line['run']}; {protocol}", {content.words(FIGURE): bar}))
        body.append(f'<tr class="protocol"><td {wide}><span class="why">{escape(protocol)}</span></td></tr>')
    return table.html("Likelihoods", body)


def _bar(interval: Interval, ends: tuple[float, float], kind: str) -> str:
    """A figure with its interval on an axis from `ends[0]` to `ends[1]`; an arrow where it lies beyond."""
    (low, high), (width, height) = ends, _BAR
    middle = height / 2

    def place(value: float) -> float:
        return round(6 + (width - 12) * (value - low) / (high - low), 1)

    parts = [f'<line class="axis" x1="0" x2="{width}" y1="{middle:g}" y2="{middle:g}"/>']
    if interval.mean > high:
        parts.append(f'<path d="M{width - 7} 2 L{width} {middle:g} L{width - 7} {height - 2} Z"/>')
    else:
        if math.isfinite(interval.low):
            left, right = place(interval.low), min(place(interval.high), width)
            right = max(right, left + _LEAST)
            parts.append(f'<line x1="{left}" x2="{right}" y1="{middle:g}" y2="{middle:g}"/>')
        parts.append(f'<circle class="{kind}" cx="{place(interval.mean)}" cy="{middle:g}" r="{_DOT:g}"/>')
    return f'<svg class="bar" width="{width}" height="{height}" aria-hidden="true">{"".join(parts)}</svg>'


def _text(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _charts(charts: Mapping[str, Image], name: str, caption: str) -> list[str]:
    return [_figure(charts[name], caption, "chart")] if name in charts else []


def _figure(image: Image, caption: str, style: str, alt: str | None = None) -> str:
    data = base64.b64encode(encode(image)).decode("ascii")
    width, height = (side // SCALE if style == "chart" else side for side in image.size)
    return (
        f'<figure class="{style}"><figcaption>{escape(caption)}</figcaption><img alt="{escape(alt or caption)}" '
        f'width="{width}" height="{height}" src="data:image/png;base64,{data}"></figure>'
    )
