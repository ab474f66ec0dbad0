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
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 8,
}
ATTENTION = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
CROSS: dict[str, Any] = {
    "cross_attention_dim": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
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
    "UNet2DModel": lambda: UNet2DModel(**UNET, **ATTENTION),
    "UNet2DModel without attention": lambda: UNet2DModel(
        **UNET, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False
    ),
    "UNet2DModel with residual resampling": lambda: UNet2DModel(
        **UNET, downsample_type="resnet", upsample_type="resnet", **ATTENTION
    ),
    "UNet2DModel with resnet blocks": lambda: UNet2DModel(
        **UNET,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
    ),
    "UNet2DModel with classes": lambda: UNet2DModel(**UNET, **ATTENTION, class_embed_type="timestep"),
    "UNet2DModel with scale and shift": lambda: UNet2DModel(**UNET, **ATTENTION, resnet_time_scale_shift="scale_shift"),
    "UNet2DConditionModel": lambda: UNet2DConditionModel(**UNET, **CROSS),
    "UNet2DConditionModel like SDXL": lambda: UNet2DConditionModel(
        **UNET,
        **CROSS,
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


def randomised(model: nn.Module) -> nn.Module:
    """Return the model with no parameter at zero, which some layers start from and which would hide mistakes."""
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture
def tiny() -> Callable[[str], nn.Module]:
    return lambda name: randomised(TINY[name]())


@pytest.fixture(params=TINY)
def any_tiny(request: pytest.FixtureRequest) -> nn.Module:
    return randomised(TINY[request.param]())


@pytest.fixture
def unet() -> UNet2DModel:
    return randomised(TINY["UNet2DModel"]())  # type: ignore[return-value]


@pytest.fixture
def odd() -> nn.Module:
    return randomised(OddDenoiser())


@pytest.fixture
def odd_table(tmp_path: Path) -> Path:
    path = tmp_path / "odd.toml"
    path.write_text(ODD_TABLE)
    return path
