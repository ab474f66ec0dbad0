"""The model card: the hub's front matter, only what was measured, and never over somebody's own text."""

import json
from pathlib import Path

import pytest
import yaml
from tests.report.conftest import put, records

from halftone.report.card import CARD, card, write_card
from halftone.report.pieces import read_pieces


def front_matter(text: str) -> dict:
    _, matter, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(matter))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put(tmp_path, records())


def test_front_matter_is_the_hubs(folder: Path) -> None:
    found = front_matter(card(read_pieces(folder)))
    assert found["library_name"] == "diffusers"
    assert {"halftone", "quantized", "toy-w4a8"} <= set(found["tags"])
    assert "base_model" not in found  # a folder's name means nothing on the hub


def test_a_base_model_of_the_hub_is_named(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    record = {**records()["quantize"], "model": "someone/some-model"}
    (folder / "halftone" / "quantize.json").write_text(json.dumps(record))
    found = front_matter(card(read_pieces(folder)))
    assert (found["base_model"], found["base_model_relation"]) == ("someone/some-model", "quantized")
    assert found["pipeline_tag"] == "text-to-image"


def test_what_was_measured_stands_with_its_circumstances(folder: Path) -> None:
    text = card(read_pieces(folder))
    for said in ("PSNR to the float model, dB", "FD(toy)", "floor 2.5", "3 samples, DDIMScheduler", "19 to 21"):
        assert said in text
    for said in ("| torch", "2.04", "batch 1, 3 rounds on toy, 1 threads, quantized in float32, torch 2"):
        assert said in text
    assert "the component 'second' stays float" in text
    assert "Kept in float: `conv_in`." in text
    assert "None" not in text


def test_under_what_call_pictures_were_compared(folder: Path) -> None:
    record = {**records()["evaluation"], "call": {"guidance_scale": 5.0}, "prompts": 200}
    record["protocol"] = {**record["protocol"], "dtype": "bfloat16"}
    (folder / "halftone" / "evaluation.json").write_text(json.dumps(record))
    text = card(read_pieces(folder))
    assert "seed 0, guidance_scale 5.0, 200 prompts, engine `torch` in bfloat16, against `toy`" in text


def test_what_is_quantized_inside_a_call_is_said(folder: Path) -> None:
    spec = {"format": "uint8"}
    groups = {
        "group_0": {"input_activations": {"format": "uint8", "keep": 1}, "targets": ["a", "b"]},
        "group_1": {"input_activations": None, "targets": "odd"},
    }
    said = {
        "attention_operands": {"x": {"q": spec, "k": spec}, "y": {"q": spec, "k": spec}, "odd": 3},
        "config_groups": groups,
    }
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps({"quantization_config": said}))
    text = card(read_pieces(folder))
    assert "- `unet`: 2 attentions with quantized operands (k uint8, q uint8)." in text
    assert "- `unet`: the first text token in float, in 2 layers." in text


def test_what_was_not_measured_names_the_command(tmp_path: Path) -> None:
    text = card(read_pieces(put(tmp_path, {"quantize": records()["quantize"]}, samples=False)))
    assert "Not measured yet against the float model: `halftone evaluate" in text
    assert "Not measured yet: `halftone bench" in text


def test_our_own_card_is_brought_up_to_date_and_an_edited_one_left_alone(folder: Path) -> None:
    (folder / "halftone" / "bench.json").unlink()
    assert write_card(folder) == folder / CARD
    first = (folder / CARD).read_text()
    put(folder, {"bench": records()["bench"]})
    assert write_card(folder) is not None
    second = (folder / CARD).read_text()
    assert first != second
    assert "2.04" in second
    (folder / CARD).write_text(second.replace("## Use", "## Use it"))
    assert write_card(folder) is None
    assert "## Use it" in (folder / CARD).read_text()
    (folder / CARD).write_text("# Mine\n")
    assert write_card(folder) is None
    assert (folder / CARD).read_text() == "# Mine\n"


def test_a_folder_without_a_record_gets_none(tmp_path: Path) -> None:
    assert write_card(tmp_path) is None
    assert not list(tmp_path.iterdir())
