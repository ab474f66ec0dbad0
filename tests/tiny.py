"""The tiny denoisers that tests run on: two blocks, some thousand parameters, the same numbers each time."""

from typing import Any, TypeVar

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

SHAPE: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
# The blocks of a denoiser, outermost first.
ATTENTION: dict[str, Any] = {
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
NO_ATTENTION: dict[str, Any] = {
    "add_attention": False,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}
CROSS_ATTENTION: dict[str, Any] = {
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def tiny_unet(seed: int = 0, blocks: dict[str, Any] = ATTENTION, **changes: Any) -> UNet2DModel:
    """Return a U-Net in eval mode; equal arguments give equal parameters, and the global generator is left alone."""
    return _seeded(UNet2DModel, seed, {**SHAPE, **blocks, **changes})


def tiny_conditional_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """Return a U-Net with cross-attention to vectors of 16 numbers; the rest as :func:`tiny_unet`."""
    return _seeded(UNet2DConditionModel, seed, {**SHAPE, **CROSS_ATTENTION, **changes})


def _seeded(kind: Any, seed: int, config: dict[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(**config).eval()


def randomised(model: Model, spread: float = 0.1, seed: int = 0) -> Model:
    """Return the model with no parameter at zero, which some layers start from and which would hide mistakes."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, spread, generator=random)
    return model.eval()


def pipeline(unet: nn.Module) -> DDIMPipeline:
    """Return an unconditional pipeline around a denoiser."""
    return DDIMPipeline(unet=unet, scheduler=DDIMScheduler())
