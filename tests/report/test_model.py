"""What the page says about a real artifact: widths and bytes."""

import json
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline, UNet2DModel
from tests.emoji import write_base
from tests.report.conftest import put
from tests.tiny import NO_ATTENTION, pipeline, tiny_unet

import halftone
from halftone.evaluate.bench import disk_bytes
from halftone.foundation.errors import ConfigError, OutputError
from halftone.report.card import CARD, card
from halftone.report.layers import read_model
from halftone.report.page import write_report
from halftone.report.pieces import read_pieces


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = pipeline(tiny_unet(blocks=NO_ATTENTION))
    few = ["calibration.samples=4", "calibration.batch=4"]
    result = halftone.quantize(pipe, "rtn-w4a8", steps=2, budget="demo", overrides=few)
    out = tmp_path_factory.mktemp("model")
    result.save(out / "saved", base_model="someone/garments")
    return out / "saved"


def test_widths_and_bytes_are_the_artifact_s(folder: Path) -> None:
    model = read_model(read_pieces(folder))
    assert model.bits == "W4A8"
    assert model.sizes is not None
    assert all(layer.bytes for layer in model.layers)
    weights = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert 0 < model.sizes.total < weights <= disk_bytes(folder / "unet")
    assert sum(layer.bytes or 0 for layer in model.layers) < model.sizes.total
    # Every weight counted once: the float model has as many.
    float_model = UNet2DModel.from_config(UNet2DModel.load_config(folder / "unet"))
    assert model.sizes.elements == pytest.approx(sum(p.numel() for p in float_model.parameters()), rel=0.05)


def test_a_result_is_saved_as_the_command_line_saves_it(folder: Path) -> None:
    text = (folder / CARD).read_text(encoding="utf-8")
    assert "base_model: someone/garments" in text and "base_model_relation: quantized" in text
    assert "Calibration" in text and "DiffusionPipeline.from_pretrained(" in text
    assert "seconds" not in json.loads((folder / "halftone/quantize.json").read_text())
    assert json.loads((folder / "halftone/run.json").read_text())["device"] == "cpu"
    result = halftone.api.Result(halftone.artifact.load_pipeline(folder), {"seconds": {}})
    with pytest.raises(OutputError, match="overwrite"):
        result.save(folder)
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        result.save(folder, base_model="a folder", overwrite=True)


def test_a_real_model_makes_a_page(folder: Path, tmp_path: Path) -> None:
    write_report(folder, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "W4A8" in page and "resnet.conv1" in page


def test_the_denoiser_is_told_from_other_quantized_components(tmp_path: Path) -> None:
    # "text_encoder" comes before "unet" in the alphabet: the page once showed its tensors as the denoiser's.
    write_base(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "base")
    words = {"prompt": ["red circle", "blue square"]}
    result = halftone.quantize(pipe, "rtn-w4a32", steps=2, budget="demo", each=words)
    halftone.quantize(pipe, "rtn-w8a32", steps=2, budget="demo", each=words, component="text_encoder")
    pipe.save_pretrained(tmp_path / "out")
    put(tmp_path / "out", {"quantize": result.report}, samples=False)
    pieces = read_pieces(tmp_path / "out")
    model = read_model(pieces)
    assert [(part.name, part.bits) for part in model.parts if part.bits != "float"] == [
        ("text_encoder", "W8"),
        ("unet", "W4"),
    ]
    assert all(layer.bytes for layer in model.layers)
    for part in model.parts:
        weights = pipe.components[part.name]
        assert part.sizes.total == sum(
            tensor.numel() * tensor.element_size() for tensor in weights.state_dict().values()
        )
    table = card(pieces).split("## Size")[1].split("##")[0]
    assert "| `text_encoder` | W8" in table and "| `vae`" in table
    write_report(tmp_path / "out", tmp_path / "page.html")
    assert "The whole pipeline" in (tmp_path / "page.html").read_text(encoding="utf-8")
