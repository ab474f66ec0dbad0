"""``zoo:fashion-unet``: an unconditional 32x32 DDPM of Fashion-MNIST, as a diffusers ``DDIMPipeline``."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from halftone.foundation.errors import ConfigError

NAME = "fashion-unet"
IMAGE_SIZE = 32

UNET = {
    "sample_size": IMAGE_SIZE,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (32, 64, 128, 192),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "attention_head_dim": 32,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def build(seed: int = 0) -> DDIMPipeline:
    """Return the untrained pipeline; ``seed`` fixes the initial weights."""
    torch.manual_seed(seed)
    return DDIMPipeline(unet=UNet2DModel(**UNET), scheduler=DDIMScheduler(**SCHEDULE))


def check(data: Path) -> None:
    """Check that ``data`` is a Fashion-MNIST npz, before anything long begins.

    Raises:
        ConfigError: it is not.
    """
    wanted = {f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels")}
    try:
        with np.load(data) as archive:
            missing = wanted - set(archive.files)
    except FileNotFoundError as error:
        raise ConfigError(f"--data {data}", "a Fashion-MNIST npz", "no such file") from error
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise ConfigError(f"--data {data}", "a Fashion-MNIST npz", type(error).__name__) from error
    if missing:
        raise ConfigError(f"--data {data}", "arrays " + ", ".join(sorted(wanted)), "no " + ", ".join(sorted(missing)))


def images(data: Path, split: str = "train") -> torch.Tensor:
    """Read ``{split}_images`` from a Fashion-MNIST npz: ``[N, 1, 32, 32]`` float32 in [-1, 1], padded with black."""
    with np.load(data) as archive:
        pixels = torch.from_numpy(archive[f"{split}_images"])
    scaled = pixels.to(torch.float32).div(127.5).sub(1.0).unsqueeze(1)
    margin = (IMAGE_SIZE - scaled.shape[-1]) // 2
    return torch.nn.functional.pad(scaled, [margin] * 4, value=-1.0)
