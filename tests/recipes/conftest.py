"""A tiny pipeline that is the same each time it is made."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel


@pytest.fixture
def make_pipe() -> Callable[[], DDIMPipeline]:
    """Return a maker of fresh pipelines around the same float U-Net."""

    def make() -> DDIMPipeline:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            unet = UNet2DModel(
                sample_size=8,
                in_channels=1,
                out_channels=1,
                block_out_channels=(8, 16),
                norm_num_groups=4,
                layers_per_block=1,
                attention_head_dim=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )
            for parameter in unet.parameters():
                parameter.data.normal_(0, 0.1)
        return DDIMPipeline(unet=unet.eval(), scheduler=DDIMScheduler())

    return make


@pytest.fixture
def shrunk() -> Callable[..., list[str]]:
    """Return the overrides that make a recipe take a second."""

    def overrides(recipe, iterations: int = 2) -> list[str]:
        changes = ["calibration.samples=8"]
        for name, step in recipe.steps.items():
            room, method = step["method"].split("/")
            if room == "reconstruct":
                changes += [
                    f"steps.{name}.iterations={iterations}",
                    f"steps.{name}.batch=4",
                    f"steps.{name}.walk_batch=8",
                ]
            if method == "gptq":
                changes += [f"steps.{name}.walk_batch=8"]
            if method == "static":
                changes += [f"steps.{name}.samples=8", f"steps.{name}.batch=8"]
        return changes

    return overrides
