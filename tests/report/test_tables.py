"""Numbers, HTML and Markdown tables."""

import math

import pytest

from halftone.report import markdown
from halftone.report.tables import Cell, Column, escaped, figures, megabytes, table, tag


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (12.345, "12.3"),
        (123456.7, "123457"),
        (0.00123, "0.00123"),
        (0.000123, "1.23 · 10⁻⁴"),
        (-2.5, "−2.50"),
        (math.inf, "∞"),
        (math.nan, None),
        (None, None),
    ],
)
def test_figures(value: float | None, shown: str | None) -> None:
    assert figures(value) == shown


def test_megabytes() -> None:
    assert [megabytes(size) for size in (12, 1234, 3_520_000, 2.5e9, None)] == [
        "12 B",
        "1.23 kB",
        "3.52 MB",
        "2.50 GB",
        None,
    ]


def test_tags_escape_content_and_attributes() -> None:
    assert tag("b", "<", class_='"') == '<b class="&quot;">&lt;</b>'
    assert escaped(tag("i", "x")) == "<i>x</i>"


def test_cells_carry_the_number_they_are_sorted_by() -> None:
    made = table(
        [Column("a"), Column("b", True)], [["<x>", Cell("1 kB", 1000.0)], ["y", Cell(None, math.nan)]], sortable=True
    )
    assert 'data-order="1000"' in made and made.count("data-order") == 1
    assert "&lt;x&gt;" in made and 'class="sortable"' in made


def test_markdown_table() -> None:
    rows = [{"name": "a|b", "fd": 12.3456, "n": 3}, {"name": "c\nd", "n": None}]
    assert markdown.table(rows, {"name": "model", "fd": "FD", "n": "samples"}).splitlines() == [
        "| model |    FD | samples |",
        "| ----- | ----: | ------: |",
        "| a\\|b  | 12.35 |       3 |",
        "| c d   |       |         |",
    ]
    assert markdown.table([], {"a": "A"}).splitlines() == ["| A   |", "| --- |"]
