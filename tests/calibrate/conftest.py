"""A tiny pipeline, and its denoiser opened for quantization."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tests.tiny import pipeline, randomised, tiny_unet

from halftone.calibrate.trajectory import Trajectory
from halftone.models.policy import Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import architecture
from halftone.quant import QuantSpec


@pytest.fixture
def unet() -> UNet2DModel:
    return randomised(tiny_unet()).requires_grad_(False)


@pytest.fixture
def pipe(unet: UNet2DModel) -> DDIMPipeline:
    return pipeline(unet)


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
