"""One table for all outputs: terminal, Markdown, HTML, CSV, JSON, W&B.

For people, a column formats its values; for other programs the values are unformatted.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

UNKNOWN = "—"
_INDENT = 2  # of the rest of a row below its name


@dataclass(frozen=True)
class Column:
    """A column: where its values come from, and how they are written.

    Args:
        name: Its heading.
        of: The key of its values in the rows, or what gives the value of a row; None is an unknown one.
        form: A format specification, or a function from a value to its text.
        left: Whether values align left, as words do, rather than right, as numbers do.
        wraps: Whether long texts may wrap in the terminal; others stay on one line.
        style: The rich style of a row's text.
    """

    name: str
    of: str | Callable[[Any], Any]
    form: str | Callable[[Any], str] = ""
    left: bool = False
    wraps: bool = False
    style: Callable[[Any], str] = lambda row: "none"

    def value(self, row: Any) -> Any:
        """A row's value."""
        return row.get(self.of) if isinstance(self.of, str) else self.of(row)

    def text(self, row: Any) -> str:
        """A row's value as formatted text."""
        value = self.value(row)
        if value is None:
            return UNKNOWN
        return self.form(value) if callable(self.form) else format(value, self.form)


def figure(name: str, key: str, write: Callable[[float, float | None], str]) -> Column:
    """A column of figures with their standard errors, which the rows have as `<key>_sem`."""

    def text(row: Mapping[str, Any]) -> str | None:
        return None if row.get(key) is None else write(row[key], row.get(f"{key}_sem"))

    return Column(name, text)


def with_error(value: float, error: float | None, alone: str = ".3g", of_error: int = 2) -> str:
    """`value ± error`, with `of_error` digits of the error; a value without one by the format specification `alone`."""
    if not error or not math.isfinite(error):
        return f"{value:{alone}}"
    if value != 0 and max(abs(value), error) >= 1e4:
        return f"{value:.1e} ± {error:.1e}"
    digits = min(6, max(0, of_error - 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


@dataclass(frozen=True)
class Table:
    """Columns over rows.

    Args:
        columns: The columns; the first one names the row.
        rows: Records, or whatever else the columns take their values from.
        title, caption: Above and below the table in the terminal.
        section: The terminal has a line between neighbouring rows whose texts in this column differ.
    """

    columns: Sequence[Column]
    rows: Sequence[Any]
    title: str = ""
    caption: str = ""
    section: Column | None = None

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]], form: str | Callable[[Any], str] = "", title: str = "") -> Table:
        """A table of all that is in records, whose keys need not be the same; the first column holds words.

        Args:
            records: The rows.
            form: Of all columns but the first.
            title: Of the table.
        """
        rows = list(records)
        first, *others = dict.fromkeys(key for row in rows for key in row) or [""]
        return cls([Column(first, first, left=True), *(Column(key, key, form) for key in others)], rows, title)

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.columns]

    def values(self) -> list[list[Any]]:
        """The rows as plain values."""
        return [[column.value(row) for column in self.columns] for row in self.rows]

    def texts(self, row: Any) -> list[str]:
        """A row as people read it."""
        return [column.text(row) for column in self.columns]

    def filled(self) -> Table:
        """The table without the columns that are unknown throughout."""
        known = [column for column in self.columns if any(column.text(row) != UNKNOWN for row in self.rows)]
        return replace(self, columns=known)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table for the terminal; one that is too wide in parts, each with the columns that name the row.

        Names are lines of their own, above the rest of their rows, where the rest then fits, or where they leave less
        than half the room.
        """
        room = options.max_width
        one_part = not self._fits(room) and replace(self, columns=self.columns[1:])._fits(room - _INDENT)
        count = 2 if self.section is not None and self.columns[0] == self.section and not one_part else 1
        names, given = replace(self, columns=self.columns[:count]), self.columns[count:]
        above = len(given) > 0 and not self._fits(room) and (one_part or 2 * names._least() > room)
        yield from wrapped(Text(self.title, "italic"), room) if self.title else ()
        parts = self._parts([], given, room - _INDENT) if above else self._parts(names.columns, given, room)
        for i, columns in enumerate(parts):
            yield from [""] if i else ()
            part = replace(self, columns=columns)
            yield from part._below(names, room) if above else [part._rich(part._widths(room), self.rows)]
        yield from wrapped(Text(self.caption, "dim italic"), room) if self.caption else ()

    def _below(self, names: Table, room: int) -> Iterator[RenderableType]:
        """The table with a line before rows of the same name, which is that of `names`."""
        widths = [width or room - _INDENT for width in self._widths(room - _INDENT)]
        yield Padding.indent(self._rich(widths, []), _INDENT)
        for i, row in enumerate(self.rows):
            before = self.rows[i - 1] if i else None
            another = before is not None and self._section_of(row) != self._section_of(before)
            yield from [""] if another else ()
            if before is None or another or names.texts(row) != names.texts(before):
                yield from wrapped(Text("  ".join(names.texts(row)), names.columns[-1].style(row)), room)
            yield Padding.indent(self._rich(widths, [row], show_header=False), _INDENT)

    def _rich(self, widths: Sequence[int | None], rows: Sequence[Any], show_header: bool = True) -> RichTable:
        made = RichTable(
            header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
            show_header=show_header,
        )  # fmt: skip
        for column, width in zip(self.columns, widths, strict=True):
            side = "left" if column.left else "right"
            made.add_column(escape(column.name), justify=side, overflow="fold", width=width, min_width=1)
        sections = [self._section_of(row) for row in rows]
        for i, row in enumerate(rows):
            texts = (f"[{column.style(row)}]{escape(column.text(row))}[/]" for column in self.columns)
            made.add_row(*texts, end_section=sections[i + 1 : i + 2] != [sections[i]])
        return made

    def _section_of(self, row: Any) -> str:
        return self.section.text(row) if self.section else ""

    def _parts(self, names: Sequence[Column], given: Sequence[Column], room: int) -> Iterator[Sequence[Column]]:
        """The columns, in as many parts as it takes for each to fit and to wrap only what may; `names` in each."""
        part = [*names]
        for column in given:
            if len(part) > len(names) and not replace(self, columns=[*part, column])._fits(room):
                yield part
                part = [*names]
            part.append(column)
        yield part

    def _fits(self, room: int) -> bool:
        return self._least() <= room

    def _least(self) -> int:
        """The least width that breaks no word."""
        *_, least = self._extents()
        return sum(least) + 2 * len(least) - 2  # a space and a separator between two

    def _extents(self) -> tuple[list[int], list[int], list[int]]:
        """The width of each column, that with its heading wrapped, and the least it takes: with texts that may, too."""
        most, headed, least = [], [], []
        for column in self.columns:
            texts, heading = [*map(column.text, self.rows)], column.name.split()
            most.append(max(map(cell_len, [column.name, *texts])))
            headed.append(max(map(cell_len, [*heading, *texts]), default=0))
            words = " ".join(texts).split() if column.wraps else texts
            least.append(max(map(cell_len, [*heading, *words]), default=0))
        return most, headed, least

    def _widths(self, room: int) -> list[int | None]:
        """The columns' widths: they fit, and no word is broken; None where that cannot be."""
        most, headed, least = self._extents()
        excess = sum(most) + 2 * len(most) - 2 - room
        if not self._fits(room):
            return [None] * len(most)
        for _ in range(max(0, excess)):  # headings wrap first
            most[max(range(len(most)), key=lambda i: (most[i] > headed[i], most[i] > least[i], most[i]))] -= 1
        return list(most)

    def markdown(self) -> str:
        """The table in Markdown; bars and angle brackets in its texts break nothing."""
        lines = (self.names, ["---"] * len(self.columns), *map(self.texts, self.rows))
        return "\n".join(f"| {' | '.join(map(markdown_text, texts))} |" for texts in lines)

    def csv(self) -> str:
        """The values as CSV, full precision, what is unknown left empty."""
        made = io.StringIO()
        csv.writer(made).writerows([self.names, *self.values()])
        return made.getvalue()

    def html(self, label: str, body: Sequence[str] | None = None) -> str:
        """The table in HTML, in a region that scrolls: reached by keyboard, it says what it is.

        Args:
            label: What it is.
            body: Its lines (`html_row` and others), where they are not simply the rows.
        """
        head = "".join(
            f'<th scope="col"{_html_class(column) if i else ""}>{html.escape(column.name)}</th>'
            for i, column in enumerate(self.columns)
        )
        lines = map(self.html_row, self.rows) if body is None else body
        return (
            f'<div class="wide" role="region" aria-label="{html.escape(label)}" tabindex="0"><table>'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        )

    def html_row(self, row: Any, style: str = "", hover: str = "", marks: Mapping[str, str] | None = None) -> str:
        """A row in HTML.

        Args:
            row: The row.
            style: Its class.
            hover: A text that shows while a mouse points at it.
            marks: HTML that follows the text of a column, by the column's name.
        """
        marks = marks or {}
        first, *others = map(html.escape, self.texts(row))
        cells = (
            f"<td{_html_class(column)}>{text}{marks.get(column.name, '')}</td>"
            for column, text in zip(self.columns[1:], others, strict=True)
        )
        given = {"class": style, "title": hover}
        opened = "".join(f' {name}="{html.escape(value)}"' for name, value in given.items() if value)
        return f'<tr{opened}><th scope="row">{first}</th>{"".join(cells)}</tr>'


def wrapped(text: Text, width: int) -> list[Text]:
    """A text in lines of a width, cut between words; a word that is longer stays whole."""
    made = []
    for line in text.split("\n", allow_blank=True):
        cuts, begin, plain = [], 0, line.plain
        for word in re.finditer(r"\S+", plain):
            if plain[begin : word.start()].strip() and cell_len(plain[begin : word.end()]) > width:
                cuts.append(begin := word.start())
        made += line.divide(cuts)
    for line in made:
        line.rstrip()
    return made


def _html_class(column: Column) -> str:
    return "" if column.left else ' class="number"'


def markdown_text(text: str) -> str:
    """A text in Markdown, within a table or outside."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
