"""A comparison as one HTML page that needs nothing else: tables, figures and samples, with the pictures inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from PIL.Image import Image

from ..pictures import encode
from .comparison import Group
from .tables import BETWEEN, COLUMNS, cells, name_of, sentences

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td:last-child { font-size: .8rem; color: #555; }
tr.best td { font-weight: 600; } tr.best td:last-child { font-weight: 400; }
figure { display: inline-block; margin: 1rem 1.5rem 1rem 0; vertical-align: top; } img { max-width: 100%; }
figure.samples img { image-rendering: pixelated; max-width: 22rem; } figcaption { font-size: .85rem; color: #555; }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #ddd; } th, td { border-color: #333; } td:last-child, figcaption { color: #999; }
}
"""


def page(
    title: str,
    about: str,
    groups: Sequence[Group],
    gaps: Sequence[str],
    figures: Mapping[str, Image],
    samples: Mapping[str, Image],
) -> str:
    """The page.

    Args:
        title: Its heading.
        about: What was measured, a line.
        groups: The tables.
        gaps: Test against train, a line a run.
        figures: Charts by caption.
        samples: Grids of samples by model.
    """
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(about)}</p>"]
    for group in groups:
        rows = [
            _row(cells(row, difference), "best" if difference is None else "")
            for row, difference in zip(group.rows, group.differences, strict=True)
        ]
        parts += [f"<h2>{escape(group.title)}</h2>", f"<p>{escape(group.why)}</p>", _table(COLUMNS, rows)]
    if len(groups) > 1:
        parts += ["<h2>Between the groups</h2>", f"<p>{escape(BETWEEN)}</p>", _list(sentences(groups))]
    if gaps:
        parts += ["<h2>Test against train</h2>", _list(gaps)]
    parts += [_figure(image, caption, "") for caption, image in figures.items()]
    parts += ["<h2>Error budgets</h2>", "<p>Standard errors of the mean in bits/dim, by cause.</p>", _budgets(groups)]
    if samples:
        parts += ["<h2>Samples</h2>", *(_figure(image, name, "samples") for name, image in samples.items())]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(texts: Sequence[str], style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f"<tr{kind}>" + "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>"


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _figure(image: Image, caption: str, style: str) -> str:
    data = base64.b64encode(encode(image)).decode("ascii")
    kind = f' class="{style}"' if style else ""
    return (
        f'<figure{kind}><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _budgets(groups: Sequence[Group]) -> str:
    rows = [row for group in groups for row in group.rows]
    causes = list(dict.fromkeys(cause for row in rows for cause in row.estimate.error_budget))
    lines = []
    for row in rows:
        errors = [row.estimate.error_budget.get(cause, math.nan) for cause in causes]
        texts = [f"{error:.5f}" if math.isfinite(error) else "-" for error in errors]
        lines.append(_row([name_of(row), *texts]))
    return _table(["", *causes], lines)
