"""One table in every form: texts stay text, values stay values."""

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser

from rich.console import Console
from terminal_width import fits

from diffusion.commands.table import Column, Table, with_error

HOSTILE = '<script>"a"</script>|[red]\\'
TABLE = Table(
    (
        Column("name", "name", left=True),
        Column("value", "value", ".2f", style=lambda row: "bold" if row["value"] else "none"),
        Column("twice", lambda row: None if row["value"] is None else 2 * row["value"]),
        Column("never", "missing"),
    ),
    [{"name": HOSTILE, "value": 1.23456}, {"name": "b", "value": None}],
    "[title]",
    section=Column("", "name"),
)


def printed(table, width=100):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_people_read_forms_and_programs_get_values():
    assert TABLE.texts(TABLE.rows[0]) == [HOSTILE, "1.23", "2.46912", "—"]
    assert TABLE.texts(TABLE.rows[1]) == ["b", "—", "—", "—"]
    assert TABLE.values() == [[HOSTILE, 1.23456, 2.46912, None], ["b", None, None, None]]
    rows = list(csv.DictReader(TABLE.csv().splitlines()))
    assert rows[0] == {"name": HOSTILE, "value": "1.23456", "twice": "2.46912", "never": ""}
    assert TABLE.filled().names == ["name", "value", "twice"]


def test_texts_stay_text_in_every_form():
    assert {HOSTILE, "[title]"} <= {text.strip() for text in re.split(r" {2,}|\n", printed(TABLE))}
    head, rule, first, _ = TABLE.markdown().splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, first)] == [5, 5, 5]
    assert "<script" not in first
    assert first[2:].split(" | ")[0].replace("&lt;", "<").replace("\\|", "|").replace("\\\\", "\\") == HOSTILE
    found = []

    class Parsed(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

        def handle_data(self, data):
            found.append(data)

    Parsed().feed(TABLE.html('a "label"'))
    assert found[0][1]["aria-label"] == 'a "label"'
    assert [text for text in found if isinstance(text, str)] == [*TABLE.names, *TABLE.texts(TABLE.rows[0]), *"b———"]
    assert ("td", {}) not in found, "numbers align right"


def test_a_section_ends_where_its_column_changes():
    def height(names):
        rows = [{"name": name, "value": 1.0} for name in names]
        return len(printed(Table(TABLE.columns, rows, section=TABLE.section)).splitlines())

    assert height("aab") == height("aaa") + 1
    assert height("aba") == height("aaa") + 2


def test_a_table_that_is_too_wide_comes_in_parts_that_each_name_their_rows():
    names = [f"figure{i}" for i in range(12)]
    rows = [{"": name, **{column: f"{i}.{j} ± 0.01" for j, column in enumerate(names)}} for i, name in enumerate("ab")]
    table = replace(Table.of(rows, title="above"), caption="below")
    for width in (40, 80, 140, 200):
        shown = printed(table, width)
        assert max(map(len, shown.splitlines())) <= width
        assert all(shown.count(row[name]) == 1 for row in rows for name in names), "no figure wraps"
        assert shown.startswith("above")
        assert shown.rstrip().endswith("below")
        parts = shown.count("figure0") and len(re.findall("^a ", shown, re.M))
        assert parts == len(re.findall("^b ", shown, re.M)) == {40: 4, 80: 2, 140: 2, 200: 1}[width]
    sentence = Column("why", lambda row: "a sentence of many words, " * 4, left=True, wraps=True)
    assert len(printed(Table((*table.columns[:3], sentence), rows), 60).split("figure0")) == 2, "it wraps, in one part"
    sections = printed(replace(table, section=table.columns[0]), 80)
    assert len(re.findall(r"^a +0\.0 ± 0.01", sections, re.M)) == 3, "the column after that of the sections names, too"


def test_names_that_leave_no_room_are_lines_above_their_rows():
    long = "a-run-whose-name-is-longer-than-a-terminal-of-eighty-columns-is-and-has-no-spaces-0001"
    rows = [{"group": "A" if i < 2 else "B", "run": name} for i, name in enumerate((long, "日本語の名前のモデル", "c"))]
    letter, run = Column("", "group", left=True), Column("model", "run", left=True, wraps=True)
    figures = [Column(f"figure{i}", lambda row, i=i: f"{i}.0 of {row['group']}") for i in range(3)]
    table = Table((letter, run, *figures), rows, section=letter)
    for width, parts in ((40, 1), (80, 1), (20, 2)):
        console = Console(width=width, soft_wrap=True)
        with console.capture() as capture:
            console.print(table)
        shown = capture.get()
        assert fits(shown, width)
        assert shown.count(long) == shown.count("日本語") == shown.count("figure0") * parts == parts
        lines = [line.split() for line in shown.splitlines()]
        assert lines[lines.index(["B", "c"]) - 1] == [], "a line between sections"
        assert lines[lines.index(["B", "c"]) + 1][:3] == ["0.0", "of", "B"]
        columns = {line.index("0.0") for line in shown.splitlines() if "0.0" in line}
        assert len(columns) == 1, "figures are aligned"
    assert f"A  {long}" in printed(table, 140), "where there is room, they are in their rows"


def test_records_need_not_have_the_same_keys():
    table = Table.of([{"a": 1, "b": 2.0}, {"a": 3, "c": 4.0}], ".1f")
    assert (table.names, table.values()) == (["a", "b", "c"], [[1, 2.0, None], [3, None, 4.0]])
    assert table.texts(table.rows[1]) == ["3", "—", "4.0"]
    assert table.csv() == "a,b,c\r\n1,2.0,\r\n3,,4.0\r\n"


def test_an_error_has_two_digits():
    assert with_error(3.14159, 0.0123) == "3.142 ± 0.012"
    assert with_error(314.159, 12.3) == "314 ± 12"
    assert with_error(123456.0, 7890.0) == "1.2e+05 ± 7.9e+03"
    assert with_error(2.0, None) == with_error(2.0, float("nan")) == "2"
    assert with_error(2.0, 0.0, ".3f") == "2.000"
