"""The commands with an engine that takes the whole denoiser."""

from pathlib import Path

import pytest
from tests.cli.conftest import Halftone

from halftone.engines import fastest

pytest.importorskip("openvino", reason="needs the package openvino: pip install 'openvino>=2025.0'")


def test_generate_inspect_and_export(halftone: Halftone, model: Path, quantized: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    drawn = halftone("generate", quantized, "-n", 2, "--steps", 3, "--engine", "openvino", "-o", picture, "--json")
    assert drawn.code == 0 and picture.is_file()
    seen = halftone("inspect", quantized, "--engine", "openvino", "--json").json
    assert set(seen["totals"]["by_kernel"]) == {"openvino"}
    simulated = {layer["path"] for layer in seen["layers"] if layer["arithmetic"] != "integer"}
    assert simulated == {"conv_in", "conv_out"}  # whose inputs have 16 bits
    assert all(
        "multiplies this layer in" in str(layer["refused"]) for layer in seen["layers"] if layer["path"] in simulated
    )
    folder = tmp_path / "exported"
    done = halftone("export", quantized, "-o", folder, "--json")
    assert done.json["bytes"] == sum(file.stat().st_size for file in folder.iterdir()) > 0
    again = halftone("export", quantized, "-o", folder)
    assert again.code == 2 and "--overwrite" in again.err
    assert halftone("export", model, "-o", tmp_path / "float").code == 2
    odd = halftone("export", quantized, "--engine", "torch", "-o", tmp_path / "odd")
    assert odd.code == 2 and "whole networks" in odd.err


def test_auto_says_what_it_measured(
    halftone: Halftone, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "private_cache", lambda name: tmp_path)
    how = ("generate", quantized, "-n", 2, "--steps", 3, "--engine", "auto")
    first = halftone(*how, "-o", tmp_path / "1.png")
    assert first.code == 0 and "engine auto takes" in first.err and "measured now" in first.err
    assert "measured here before" in halftone(*how, "-o", tmp_path / "2.png").err
    assert "measured" not in halftone(*how[:-2], "-o", tmp_path / "3.png").err
