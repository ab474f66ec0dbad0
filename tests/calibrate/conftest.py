"""A tiny pipeline, and its denoiser opened for quantization."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from halftone.calibrate.trajectory import Trajectory
from halftone.models.policy import Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import architecture
from halftone.quant import QuantSpec


def make_unet() -> UNet2DModel:
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.1)
    return unet.eval().requires_grad_(False)


@pytest.fixture
def unet() -> UNet2DModel:
    return make_unet()


@pytest.fixture
def pipe(unet: UNet2DModel) -> DDIMPipeline:
    return DDIMPipeline(unet=unet, scheduler=DDIMScheduler())


@pytest.fixture
def opened() -> Callable[..., QuantModel]:
    """Open a denoiser under a policy of 4-bit weights, or under the rules given."""

    def open_model(module: torch.nn.Module, *rules: Rule) -> QuantModel:
        found = architecture(module)
        rules = rules or (Rule("*", weight=QuantSpec("uint4", "channel")),)
        return QuantModel.open(module, found, make_plan(module, found, rules))

    return open_model


@pytest.fixture
def data() -> Trajectory:
    """Ten samples of noise at timesteps from 999 down."""
    steps = torch.arange(999, -1, -111)
    return Trajectory((torch.randn(10, 1, 8, 8), steps), {}, torch.arange(10), {"kind": "noise"})
