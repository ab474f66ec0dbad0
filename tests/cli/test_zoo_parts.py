"""``halftone zoo train`` of a LoRA and a ControlNet for a text-to-image model, and their files in diffusers."""

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from tests.cli.conftest import Halftone
from tests.emoji import write_base

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' schedulers


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and the pipeline ``base``."""
    return write_base(tmp_path_factory.mktemp("parts"))


def test_the_commands_write_what_diffusers_loads(halftone: Halftone, place: Path, tmp_path: Path) -> None:
    how = ("--data", place / "data", "--base", place / "base", "--minutes", 0.01, "--samples", 3, "--json")
    style = halftone("zoo", "train", "emoji-style-lora", *how, "-o", tmp_path / "style")
    assert style.code == 0, style.err
    assert style.json["measured"]["share_in_style"].keys() == {"0", "0.5", "1"}
    assert style.json["command"].endswith("--base base --seed 0")
    control = halftone("zoo", "train", "emoji-controlnet", *how, "-o", tmp_path / "control")
    assert control.code == 0, control.err
    assert 0 <= control.json["measured"]["overlap"]["with"] <= 1
    for name in ("style", "control"):
        assert {"README.md", "card.json", "samples.png"} <= {file.name for file in (tmp_path / name).iterdir()}
        assert "halftone zoo train emoji-" in (tmp_path / name / "README.md").read_text()

    pipe = StableDiffusionPipeline.from_pretrained(place / "base")
    pipe.load_lora_weights(tmp_path / "style")
    assert pipe.get_list_adapters()
    net = ControlNetModel.from_pretrained(tmp_path / "control", torch_dtype=torch.float32)
    made = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    made.set_progress_bar_config(disable=True)
    mask = Image.new("RGB", (16, 16), "white")
    assert made("red circle", image=mask, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


def test_a_base_that_is_none(halftone: Halftone, place: Path, tmp_path: Path) -> None:
    done = halftone("zoo", "train", "emoji-style-lora", "--data", place / "data", "--base", "zoo:fashion-unet")
    assert done.code == 2 and "--base zoo:fashion-unet: expected a float StableDiffusionPipeline" in done.err
    other = halftone("zoo", "train", "emoji-sd", "--data", place / "data", "--base", "x", "-o", tmp_path / "x")
    assert other.code == 2 and "--base" in other.err
    zoo = halftone("generate", "zoo:emoji-style-lora", "-o", tmp_path / "a.png")
    assert zoo.code == 2 and "got a LoRA" in zoo.err
