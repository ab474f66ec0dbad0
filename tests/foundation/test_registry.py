"""The file name is the registry."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from halftone.foundation import registry
from halftone.foundation.errors import ConfigError

ROOM = "house_of_tests.rounding"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two methods, one broken file, a private one and a nested package."""
    folder = tmp_path / "house_of_tests" / "rounding"
    (folder / "inner").mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "_private.py").write_text("")
    (folder / "adaround.py").write_text("class Result: ...\nclass AdaRound: ...\n")
    imports = "from house_of_tests.rounding.adaround import AdaRound\n"
    (folder / "low_rank.py").write_text(imports + "class LowRank: ...\n")
    (folder / "broken.py").write_text("Broken = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("house_of_tests")]:
        del sys.modules[name]


def plug(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that another distribution offers these entry points."""

    def offered(group: str) -> list[EntryPoint]:
        assert group == ROOM
        return [EntryPoint(name, value, group) for name, value in points.items()]

    monkeypatch.setattr(registry, "entry_points", offered)


def test_names_are_file_names_and_nothing_is_imported(room: Path) -> None:
    assert registry.names(ROOM) == ["adaround", "broken", "low_rank"]
    assert f"{ROOM}.adaround" not in sys.modules


@pytest.mark.parametrize(("name", "cls"), [("adaround", "AdaRound"), ("low-rank", "LowRank"), ("low_rank", "LowRank")])
def test_a_name_finds_its_class(room: Path, name: str, cls: str) -> None:
    assert registry.find(ROOM, name).__name__ == cls


@pytest.mark.parametrize("name", ["adaroud", "Result", "_private", "inner", "../x", ""])
def test_an_unknown_name_is_refused(room: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'adaround'" if name == "adaroud" else "a known name"):
        registry.find(ROOM, name)


def test_a_file_without_its_class_says_so(room: Path) -> None:
    with pytest.raises(ConfigError, match="a class named like the file"):
        registry.find(ROOM, "broken")


def test_an_unknown_package_is_the_programmers_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        registry.names("halftone.nowhere")


def test_entry_points_add_names(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, **{"third-party": "house_of_tests.rounding.adaround:Result"})
    assert "third_party" in registry.names(ROOM)
    assert registry.find(ROOM, "third-party").__name__ == "Result"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gone", "house_of_tests.nowhere:X", "ModuleNotFoundError"),
        ("gone", "house_of_tests.rounding.adaround:X", "AttributeError"),
        ("three", "house_of_tests.rounding.broken:Broken", "a class"),
        ("adaround", "house_of_tests.rounding.adaround:Result", "one owner"),
    ],
)
def test_bad_entry_points_are_named(
    room: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    plug(monkeypatch, **{name: value})
    with pytest.raises(ConfigError, match=words):
        registry.find(ROOM, name)


def test_installed_entry_points_are_read(room: Path, tmp_path: Path) -> None:
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[house_of_tests.rounding]\nextra = house_of_tests.rounding.adaround:Result\n"
    )
    assert "extra" in registry.names(ROOM)
    assert registry.find(ROOM, "extra").__name__ == "Result"
