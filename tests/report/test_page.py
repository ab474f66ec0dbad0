"""The page: whole, self-contained, honest about what is missing, and safe whatever the files say."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halftone.foundation.errors import ArtifactError, ConfigError
from halftone.report import write_report
from halftone.report.pieces import COMMANDS

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>$name \\ $x^2$ & </svg></style>'


@pytest.fixture
def make(write: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    def page(found: dict[str, Any], samples: bool = True, name: str = "toy") -> str:
        write_report(write(tmp_path / name, found, samples), tmp_path / "page.html")
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return page


def test_the_page_is_whole(make: Callable[..., str], everything: dict[str, Any], read: Callable[..., Any]) -> None:
    seen = read(make(everything))
    for words in (
        "A toy recipe",
        "20.0 dB",
        "12.5",
        "floor 2.50",
        "2.04 ×",
        "1.9",
        "toy_int8 (integer)",
        "odd channels",
        "psnr>=25",
        "NOT met",
        "separate",
        "a note",
        "Left float the component 'second' stays float.",
    ):
        assert words in seen.words, words
    assert seen.tags.count("section") == 8
    assert seen.tags.count("svg") == 2 + 2 + 1 + 1 + 1 + 1  # ornaments, trail, blocks, weights, widest layer, shortcut
    assert not any(f"{command}." in seen.words for command in COMMANDS.values())


def test_nothing_is_loaded(make: Callable[..., str], everything: dict[str, Any], read: Callable[..., Any]) -> None:
    page = make(everything)
    assert not re.search(r"https?://|//\w|@import|url\((?!#)", re.sub(r"data:image/png;base64,[\w+/=]+", "", page))
    seen = read(page)
    for name, value in seen.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), value
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(seen.tags)
    assert ("http-equiv", "Content-Security-Policy") in seen.attributes


def test_names_inside_the_page_are_unique(make: Callable[..., str], everything: dict[str, Any]) -> None:
    page = make(everything)
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', page))
    assert used <= set(re.findall(r'id="([\w-]+)"', page))
    clips = re.findall(r'<clipPath id="([\w-]+)"', page)
    assert len(set(clips)) == len(clips)


def test_what_is_missing_is_named(
    make: Callable[..., str], everything: dict[str, Any], read: Callable[..., Any]
) -> None:
    seen = read(make({"quantize": everything["quantize"]}, samples=False))
    for piece in COMMANDS:
        assert COMMANDS[piece] in seen.words, piece
    assert "the folder holds only records" in seen.words


def test_nearly_empty_records_make_a_page(make: Callable[..., str], read: Callable[..., Any]) -> None:
    read(make({"quantize": {}}, samples=False))
    odd = {"layers": 3, "steps": {"a": 1, "b": {"layers": {"c": None}}}, "recipe": [], "seconds": {"x": "y"}}
    bench = {"rows": [7, {"name": None}]}
    read(
        make(
            {"quantize": odd, "evaluation": {"paired": {"psnr": 3}, "trail": {"x_mse": "no"}}, "bench": bench},
            name="odd",
        )
    )


def hostile(value: Any) -> Any:
    """Return the record with every string, and every key that is a name, replaced."""
    if isinstance(value, dict):
        return {
            (HOSTILE + key if "." in key or key == "conv_in" else key): hostile(entry) for key, entry in value.items()
        }
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_strings_are_text(
    make: Callable[..., str], everything: dict[str, Any], read: Callable[..., Any]
) -> None:
    found = hostile(everything)
    found["quantize"]["model"] = HOSTILE
    page = make(found)
    seen = read(page)
    assert "<script>alert" not in page and "<img src=x" not in page
    assert seen.tags.count("script") == 1
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert "<script>alert(1)</script>" in seen.words  # shown, as text


def test_the_folder_must_be_a_quantized_model(tmp_path: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="halftone quantize"):
        write_report(tmp_path, tmp_path / "page.html")
    folder = write(tmp_path / "damaged", {"quantize": {}}, samples=False)
    (folder / "halftone" / "bench.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"bench\.json"):
        write_report(folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "arrays", [{"float": np.zeros(3)}, {"float": np.zeros((1, 1, 2, 2)), "quantized": np.zeros((1, 1, 2, 2))}]
)
def test_odd_samples_are_refused(tmp_path: Path, write: Callable[..., Path], arrays: dict[str, np.ndarray]) -> None:
    folder = write(tmp_path / "odd", {"quantize": {}}, samples=False)
    np.savez(folder / "halftone" / "samples.npz", **arrays)
    with pytest.raises(ArtifactError, match=r"samples\.npz"):
        write_report(folder, tmp_path / "page.html")


def test_pickled_samples_are_not_read(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(tmp_path / "pickled", {"quantize": {}}, samples=False)
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(folder / "halftone" / "samples.npz", quantized=objects, float=objects)
    with pytest.raises(ArtifactError, match=r"samples\.npz"):
        write_report(folder, tmp_path / "page.html")


def test_colour_and_large_pictures(make: Callable[..., str], everything: dict[str, Any], tmp_path: Path) -> None:
    room = tmp_path / "toy" / "halftone"
    room.mkdir(parents=True)
    pictures = np.zeros((1, 3, 600, 600), dtype=np.uint8)
    np.savez(room / "samples.npz", quantized=pictures, float=pictures)
    page = make({"quantize": everything["quantize"]}, samples=False)
    assert "identical" in page and "enlarged" not in page


def test_the_records_are_read_strictly_as_data(everything: dict[str, Any]) -> None:
    json.dumps(everything, allow_nan=False)
