"""ControlNets on a quantized denoiser: they steer it, it is calibrated with them, and foreign ones are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image
from tests.stable_diffusion import (
    PROMPTS,
    draw,
    load_quietly,
    quantized,
    quantized_stable_diffusion,
    tiny_stable_diffusion,
)

import halftone
from halftone.artifact import load_pipeline, save_pipeline
from halftone.foundation.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' schedulers
RED = Image.new("RGB", (16, 16), (255, 0, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized_stable_diffusion(tmp_path_factory.mktemp("stable-diffusion"))


@pytest.fixture
def pipe(folder: Path) -> StableDiffusionPipeline:
    return load_quietly(folder)


def controlnet(pipe: StableDiffusionPipeline) -> ControlNetModel:
    torch.manual_seed(3)
    # Two halvings, as this autoencoder has.
    net = ControlNetModel.from_unet(pipe.unet, conditioning_channels=3, conditioning_embedding_out_channels=(4, 8, 8))
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return net.eval()


def test_a_controlnet_steers_a_quantized_unet(folder: Path, pipe: StableDiffusionPipeline) -> None:
    net = controlnet(tiny_stable_diffusion(folder.parent / "tokenizer"))
    made = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)
    assert quantized(made.unet)
    with pytest.warns(halftone.TrajectoryWarning) as warned:
        off, on = (draw(made, image=RED, controlnet_conditioning_scale=scale) for scale in (0.0, 1.0))
    seen = [str(each.message) for each in warned]
    assert len(seen) == 2, "the residuals of the down blocks and of the mid block, each once"
    assert "an input that calibration did not see: down_block_additional_residuals[0]" in seen[0]
    assert "mid_block_additional_residual" in seen[1]
    assert not np.array_equal(off, on)


def test_a_controlnet_of_another_width_is_refused_in_the_call(folder: Path, pipe: StableDiffusionPipeline) -> None:
    fit = controlnet(tiny_stable_diffusion(folder.parent / "tokenizer"))
    wide = ControlNetModel.from_config({**fit.config, "block_out_channels": [32, 32]}).eval()
    made = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=wide)
    with pytest.raises(ConfigError, match="expected residuals of 8 to 16 channels, got 32 to 32.*block_out_channels"):
        draw(made, image=RED)


@pytest.mark.slow
def test_a_pipeline_with_a_controlnet_is_calibrated_with_it(folder: Path, tmp_path: Path) -> None:
    float_pipe = tiny_stable_diffusion(folder.parent / "tokenizer")
    made = StableDiffusionControlNetPipeline.from_pipe(float_pipe, controlnet=controlnet(float_pipe))
    made.set_progress_bar_config(disable=True)
    each = {"prompt": PROMPTS, "image": [RED] * len(PROMPTS)}
    how = {"steps": 3, "budget": "demo", "each": each, "overrides": ["calibration.samples=6"]}
    result = halftone.quantize(made, "rtn-w8a8", work=tmp_path / "work", **how)
    assert set(result.report["trajectory"]["conditions"]) == {"prompt", "image"}
    (sentence,) = result.report["left_float"]
    assert "controlnet" in sentence
    again = load_pipeline(save_pipeline(made, tmp_path / "controlled"))
    assert quantized(again.unet)
    assert draw(again, image=RED).shape == (1, 16, 16, 3)
