"""Tiny denoisers of every architecture that Halftone knows, and one that it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DModel,
)
from tests.tiny import NO_ATTENTION, randomised, tiny_conditional_unet, tiny_unet
from torch import nn

RGB: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "block_out_channels": (16, 32)}
DIT: dict[str, Any] = {
    "sample_size": 4,
    "patch_size": 2,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
}


class OddDenoiser(nn.Module):
    """A denoiser that no table knows: odd channel counts, groups, 1x1 and strided convolutions, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 10, 3, padding=1)
        self.grouped = nn.Conv2d(10, 15, 3, padding=1, groups=5)
        self.strided = nn.Conv2d(15, 7, 3, stride=2, padding=1)
        self.pointwise = nn.Conv2d(7, 7, 1)
        self.mix = nn.Conv2d(17, 7, 1)
        self.embed = nn.Linear(1, 7)
        self.leave = nn.Conv2d(7, 3, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        first = self.enter(sample)
        deep = self.pointwise(self.strided(self.grouped(first.relu())).tanh())
        deep = (
            nn.functional.interpolate(deep, scale_factor=2)
            + self.embed(timestep.float()[:, None] / 1000)[..., None, None]
        )
        return self.leave(self.mix(torch.cat([deep, first], dim=1)).tanh())


ODD_TABLE = """
[roles]
"enter" = "conv_in"
"grouped" = "body.grouped"
"strided" = "body.strided"
"pointwise" = "body.pointwise"
"mix" = "body.shortcut"
"embed" = "time.embed"
"leave" = "conv_out"
"""

TINY: dict[str, Callable[[], nn.Module]] = {
    "UNet2DModel": lambda: tiny_unet(**RGB),
    "UNet2DModel without attention": lambda: tiny_unet(blocks=NO_ATTENTION, **RGB),
    "UNet2DModel with residual resampling": lambda: tiny_unet(**RGB, downsample_type="resnet", upsample_type="resnet"),
    "UNet2DModel with resnet blocks": lambda: tiny_unet(
        **RGB,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
    ),
    "UNet2DModel with classes": lambda: tiny_unet(**RGB, class_embed_type="timestep"),
    "UNet2DModel with scale and shift": lambda: tiny_unet(**RGB, resnet_time_scale_shift="scale_shift"),
    "UNet2DConditionModel": lambda: tiny_conditional_unet(**RGB),
    "UNet2DConditionModel like SDXL": lambda: tiny_conditional_unet(
        **RGB,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    ),
    "DiTTransformer2DModel": lambda: DiTTransformer2DModel(**DIT, in_channels=3, out_channels=6, norm_num_groups=4),
    "PixArtTransformer2DModel": lambda: PixArtTransformer2DModel(
        **DIT, in_channels=3, out_channels=6, cross_attention_dim=16, caption_channels=12
    ),
    "SD3Transformer2DModel": lambda: SD3Transformer2DModel(
        **DIT,
        in_channels=3,
        out_channels=3,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
    ),
}


def make(name: str) -> nn.Module:
    return randomised(TINY[name](), 0.2).requires_grad_(False)


@pytest.fixture
def tiny() -> Callable[[str], nn.Module]:
    return make


@pytest.fixture(params=TINY)
def any_tiny(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param)


@pytest.fixture
def unet() -> UNet2DModel:
    return make("UNet2DModel")  # type: ignore[return-value]


@pytest.fixture
def odd() -> nn.Module:
    return randomised(OddDenoiser(), 0.2).requires_grad_(False)


@pytest.fixture
def odd_table(tmp_path: Path) -> Path:
    path = tmp_path / "odd.toml"
    path.write_text(ODD_TABLE)
    return path
