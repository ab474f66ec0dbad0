"""Pipelines of a few thousand parameters."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMPipeline
from tests.tiny import NO_ATTENTION, pipeline, tiny_unet


def _build(seed: int, size: int = 16) -> DDIMPipeline:
    return pipeline(tiny_unet(seed, NO_ATTENTION, sample_size=size, block_out_channels=(8, 8)))


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
