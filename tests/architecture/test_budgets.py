"""Files and functions stay small, and no file has a name that says nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ("src", "tests", "scripts", "benchmarks") for path in (ROOT / room).rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 60  # without the docstring: explaining is not what makes a function long
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "misc", "core"}

# Path -> why it may be longer. An entry that is no longer needed fails.
LONG_FILES: dict[str, str] = {
    "src/halftone/nn/layers.py": "the float and the quantized state of a layer, with its two kinds: one class seen from all sides",
}
# "path::function" -> why it may be longer.
LONG_FUNCTIONS: dict[str, str] = {}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name and the length of every function of a file, nested ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node, clean=False) is not None else 0
            yield f"{named(path)}::{node.name}", node.end_lineno - node.lineno + 1 - docstring


@pytest.fixture(scope="module")
def file_lines() -> dict[str, int]:
    return {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}


@pytest.fixture(scope="module")
def function_lines() -> dict[str, int]:
    longest: dict[str, int] = {}
    for path in FILES:
        for name, lines in functions(path):
            longest[name] = max(lines, longest.get(name, 0))  # methods of two classes may share a name
    return longest


def test_there_are_files() -> None:
    assert len(FILES) > 5


def test_files_are_short(file_lines: dict[str, int]) -> None:
    long = {name: lines for name, lines in file_lines.items() if lines > FILE_LINES}
    assert set(long) == set(LONG_FILES), f"longer than {FILE_LINES} lines: {long}"


def test_functions_are_short(function_lines: dict[str, int]) -> None:
    long = {name: lines for name, lines in function_lines.items() if lines > FUNCTION_LINES}
    assert set(long) == set(LONG_FUNCTIONS), f"longer than {FUNCTION_LINES} lines: {long}"


def test_exceptions_have_reasons() -> None:
    assert all(reason.strip() for reason in (*LONG_FILES.values(), *LONG_FUNCTIONS.values()))


def test_file_names_say_something() -> None:
    assert [named(path) for path in FILES if path.stem.strip("_").removeprefix("test_") in FORBIDDEN_NAMES] == []


def test_annotations_are_not_postponed() -> None:
    # Strict configuration and shape checks read annotations at run time.
    needle = "from __future__ import " + "annotations"
    assert [named(path) for path in FILES if needle in path.read_text(encoding="utf-8")] == []
