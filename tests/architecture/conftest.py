"""A package of somebody else, and the conformance suites that hold what it adds to their laws."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from halftone.formats import parse
from halftone.foundation import registry
from halftone.kernels.select import library

PACKAGE = "foreign_package"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install the package, as far as the registry can tell: ``install(files by name, entry points by group)``."""

    def write(files: dict[str, str], points: dict[str, dict[str, str]]) -> Path:
        folder = tmp_path / PACKAGE
        folder.mkdir()
        for name, text in {"__init__.py": "", **files}.items():
            (folder / name).write_text(text)
        monkeypatch.setattr(
            registry,
            "entry_points",
            lambda group: [EntryPoint(n, f"{PACKAGE}.{v}", group) for n, v in points.get(group, {}).items()],
        )
        return folder

    monkeypatch.syspath_prepend(tmp_path)
    _forget()
    yield write
    _forget()


def _forget() -> None:
    parse.cache_clear()
    library.cache_clear()
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


@pytest.fixture
def conformance() -> Callable[[str], ModuleType]:
    """Return the conformance suite of a room (``formats``, ``kernels``), read anew: it lists what is installed now."""

    def read(room: str) -> ModuleType:
        path = Path(__file__).parent.parent / room / "test_conformance.py"
        spec = importlib.util.spec_from_file_location(f"{room}_conformance_anew", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return read
