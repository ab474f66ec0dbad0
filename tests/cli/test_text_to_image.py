"""Text-to-image pipelines on the command line: guidance, adapters, and what was made for another model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from tests.stable_diffusion import PROMPTS, tiny_stable_diffusion

import halftone
from halftone.cli.app import run
from halftone.foundation.errors import ArtifactError, ConfigError

from .conftest import Halftone
from .test_bad_input import refused

DRAW = ("generate", "--prompt", "red circle", "-n", 1, "--steps", 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_stable_diffusion(folder / "tokenizer").save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def quantized(base: Path) -> Path:
    (base / "prompts.txt").write_text("\n".join(PROMPTS))
    how = ("--recipe", "rtn-w8a8", "--steps", "2", "--set", "calibration.samples=8", "--prompts", base / "prompts.txt")
    assert run([str(each) for each in ("quantize", base / "model", *how, "-o", base / "out")]) == 0
    return base / "out"


def adapter(unet: UNet2DConditionModel, folder: Path) -> Path:
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(0)
    for name, value in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.5)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


def other_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return one that is twice as wide."""
    return UNet2DConditionModel.from_config({**unet.config, "block_out_channels": (16, 32)})


def test_options_reach_the_pipeline(halftone: Halftone, base: Path, quantized: Path, tmp_path: Path) -> None:
    place = adapter(tiny_stable_diffusion(base / "tokenizer").unet, tmp_path / "lora")
    (place / "pytorch_lora_weights.safetensors").rename(place / "style.safetensors")
    drawn = {}
    for name, options in {
        "plain": (),
        "unguided": ("--guidance", 1),
        "negative": ("--negative", "blue square"),
        "styled": ("--lora", place),
        "none": ("--lora", f"{place / 'style.safetensors'}=0"),
    }.items():
        done = halftone(*DRAW, quantized, *options, "-o", tmp_path / f"{name}.png")
        assert done.code == 0, done.err
        with Image.open(tmp_path / f"{name}.png") as picture:
            drawn[name] = np.asarray(picture).copy()
    for name in ("unguided", "negative", "styled"):
        assert not np.array_equal(drawn[name], drawn["plain"]), name
    assert np.array_equal(drawn["none"], drawn["plain"])


def test_an_adapter_of_another_model(halftone: Halftone, base: Path, quantized: Path, tmp_path: Path) -> None:
    unet = tiny_stable_diffusion(base / "tokenizer").unet
    wide = adapter(other_unet(unet), tmp_path / "wide")
    where = (*DRAW, quantized, "-o", tmp_path / "x.png", "--lora")
    refused(halftone, ["--lora", "made for this StableDiffusionPipeline", "size mismatch"], *where, wide)
    refused(halftone, ["a folder with one", "nothing there"], *where, tmp_path / "nowhere.safetensors")
    (tmp_path / "empty").mkdir()
    refused(halftone, ["0 of them"], *where, tmp_path / "empty")
    save_file({"text_model.lora_down.weight": torch.ones(2, 2)}, tmp_path / "foreign.safetensors")
    refused(halftone, ["made for this", "trained for another model"], *where, tmp_path / "foreign.safetensors")
    assert not (tmp_path / "x.png").exists()


def test_pipelines_that_take_none_of_it(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    where = ("generate", model, "-n", 1, "--steps", 2, "-o", tmp_path / "x.png")
    refused(halftone, ["negative_prompt", "Leave it out"], *where, "--negative", "blue")
    refused(halftone, ["guidance_scale", "Leave it out"], *where, "--guidance", 3)
    (tmp_path / "some.safetensors").write_bytes(b"")
    refused(halftone, ["a pipeline that takes adapters"], *where, "--lora", tmp_path / "some.safetensors")


def test_a_controlnet_of_another_width(base: Path, tmp_path: Path) -> None:
    pipe = tiny_stable_diffusion(base / "tokenizer")
    options = {"conditioning_channels": 3, "conditioning_embedding_out_channels": (4, 8, 8)}
    net = ControlNetModel.from_unet(other_unet(pipe.unet), load_weights_from_unet=False, **options)
    made = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    words = r"controlnet: block_out_channels: expected \[8, 16\], as the unet has it, got \[16, 32\]"
    with pytest.raises(ConfigError, match=words):
        halftone.quantize(made, "rtn-w8a8", each={"prompt": PROMPTS})
    made.save_pretrained(tmp_path / "made")
    with pytest.raises(ConfigError, match=words):
        halftone.artifact.load_pipeline(tmp_path / "made")


def test_two_components_of_different_versions(quantized: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "copy"))
    config = json.loads((folder / "unet/config.json").read_text())
    assert "version" in config["quantization_config"]
    shutil.copytree(folder / "unet", folder / "controlnet")
    index = json.loads((folder / "model_index.json").read_text())
    index["controlnet"] = ["diffusers", "UNet2DConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    config["quantization_config"]["version"] = 99
    (folder / "controlnet/config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"controlnet.*99"):
        halftone.artifact.load_pipeline(folder)
