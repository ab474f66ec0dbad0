"""Pipelines of a few thousand parameters."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel


def _build(seed: int, size: int = 16) -> DDIMPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=size,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
        )
    return DDIMPipeline(unet=unet.eval(), scheduler=DDIMScheduler(num_train_timesteps=1000))


@pytest.fixture(scope="session")
def build() -> Callable[..., DDIMPipeline]:
    """Make a pipeline of your own: ``build(seed, size=16)``."""
    return _build


@pytest.fixture(scope="session")
def pipe() -> DDIMPipeline:
    return _build(0)


@pytest.fixture(scope="session")
def other() -> DDIMPipeline:
    """Nearly the same network."""
    twin = _build(0)
    with torch.no_grad():
        twin.unet.conv_out.weight.add_(0.02)
    return twin
