"""``zoo:emoji-controlnet``: a ControlNet that puts an emoji where a coarse mask is, for ``zoo:emoji-sd``.

The base model draws every emoji in the middle, as large as it fits, and the prompt alone says which: a mask of that picture tells
nothing, and a ControlNet that was trained on such masks learned nothing (overlap 0.58, and 0.57 without it, after 68,000 images).
So pictures are made smaller and moved, which the prompt does not say and the mask does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from scipy import ndimage
from torch.nn import functional

from halftone.foundation.seeds import generator
from halftone.zoo.conditional_loss import Latents, conditional_loss, frozen, latents_of
from halftone.zoo.denoiser_training import Diffusion, Training
from halftone.zoo.emoji_data import EmojiData
from halftone.zoo.trainer import fit

NAME = "emoji-controlnet"
CELLS = 8  # of a mask, to a side
_WHITE = 0.94  # a pixel all of whose colours are above it is background
_EMBEDDING = (16, 32, 64)  # channels; its two strides of two bring pixels to the latents' size
_LEAST = 0.55  # of a side, to which a picture is made smaller
_VARIANTS = 6  # of each picture: as it is, and placed elsewhere


@dataclass(frozen=True)
class ControlTraining:
    """Hyper-parameters.

    Attributes:
        dropout: share of empty prompts, half as many again as the base model had: then the mask alone must do.
    """

    minutes: float = 36.0
    seed: int = 0
    dropout: float = 0.15
    loop: Training = field(default_factory=lambda: Training(batch=16, lr=3e-4, warmup=100, ema=0.998))


def training_for(device: str, minutes: float, seed: int) -> ControlTraining:
    """Return the hyper-parameters that suit ``device`` (cpu, cuda ...): a GPU needs large batches to be busy."""
    usual = ControlTraining(minutes, seed)
    if torch.device(device).type == "cpu":
        return usual
    return replace(usual, loop=replace(usual.loop, batch=128, lr=1e-3))


def silhouettes(images: torch.Tensor) -> torch.Tensor:
    """Return where the thing on white is, holes filled, of ``images`` ``[N, 3, S, S]`` in [0, 1]: ``[N, S, S]`` bool."""
    there = (images.amin(1) < _WHITE).cpu().numpy()
    return torch.from_numpy(np.stack([ndimage.binary_fill_holes(each) for each in there]))


def coarse(images: torch.Tensor) -> torch.Tensor:
    """Return which cells belong by half or more to the silhouettes of ``images`` ``[N, 3, S, S]`` in [0, 1]: bool ``[N, 8, 8]``."""
    return functional.adaptive_avg_pool2d(silhouettes(images)[:, None].float(), CELLS)[:, 0] >= 0.5


def widened(cells: torch.Tensor, size: int) -> torch.Tensor:
    """Return ``cells`` bool ``[N, 8, 8]`` as ControlNet inputs ``[N, 3, size, size]``: white where True, else black."""
    wide = functional.interpolate(cells[:, None].float(), size=(size, size), mode="nearest")
    return wide.expand(-1, 3, -1, -1).contiguous()


def masks(images: torch.Tensor) -> torch.Tensor:
    """Return the coarse masks of ``images`` ``[N, 3, S, S]`` in [0, 1], which are ControlNet inputs of the same shape and range."""
    return widened(coarse(images), images.shape[-1])


def places(count: int, random: torch.Generator) -> torch.Tensor:
    """Return where pictures are to go, ``[count, 3]``: size of a side, and the middle across and down, in [-1, 1]."""
    draw = torch.rand(count, 3, generator=random)
    side = _LEAST + (1 - _LEAST) * draw[:, :1]
    return torch.cat([side, (2 * draw[:, 1:] - 1) * (1 - side)], dim=1)


def placed(images: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return ``images`` ``[N, 3, S, S]``, whose white is 1, smaller and elsewhere on white, as :func:`places` has it."""
    side, middle = where[:, 0], where[:, 1:]
    return _sampled(images, 1 / side, -middle / side[:, None])


def restored(images: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return what is at ``where`` in ``images``, as large as they are: what :func:`placed` did is undone, but for sharpness."""
    return _sampled(images, where[:, 0], where[:, 1:])


def _sampled(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return pictures whose point p shows the point ``scale * p + shift`` of ``images``; beyond the edge is white."""
    turn = torch.zeros(len(images), 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = scale
    turn[:, :, 2] = shift
    grid = functional.affine_grid(turn, list(images.shape), align_corners=False).to(images)
    return functional.grid_sample(images - 1, grid, align_corners=False) + 1


def overlap(images: torch.Tensor, given: torch.Tensor) -> float:
    """Return the mean intersection over union of the coarse masks of ``images`` and those ``given``, all ``[N, 3, S, S]``."""
    found, wanted = masks(images)[:, 0] > 0.5, given[:, 0] > 0.5
    both, either = ((f(found, wanted)).sum((1, 2)).double() for f in (torch.logical_and, torch.logical_or))
    return (both / either.clamp(min=1)).mean().item()


def controlnet(pipe: StableDiffusionPipeline) -> ControlNetModel:
    """Return an untrained ControlNet for ``pipe``: a copy of the U-Net's first half whose outputs begin at zero."""
    return ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=_EMBEDDING)


def train(
    pipe: StableDiffusionPipeline,
    data: EmojiData,
    training: ControlTraining,
    work: Path,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> tuple[ControlNetModel, dict[str, Any]]:
    """Return a ControlNet trained on ``data`` with its own masks, and the card's facts; ``pipe`` stays as it is.

    ``work`` holds a checkpoint, from which the same call goes on.

    Raises:
        ConfigError: the checkpoint is another training's.
    """
    base = frozen(pipe, device)
    latents, given = _variants(pipe, data, training.seed)
    given, size = given.to(device), data.images.shape[-1]
    torch.manual_seed(training.seed)
    net = controlnet(pipe).requires_grad_(True).to(device)

    def predict(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            text = pipe.text_encoder(tokens)[0]
        down, middle = net(x, t, text, widened(given[rows], size), return_dict=False)
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return pipe.unet(x, t, text, **control).sample

    pictures = {"variants": _VARIANTS, "least": _LEAST}
    about = {"data": data.digest, "base": base, **pictures}
    loop = replace(training.loop, minutes=training.minutes, seed=training.seed)
    diffusion = Diffusion.of(pipe.scheduler, device)
    loss = conditional_loss(predict, data, latents, pipe.tokenizer, loop, training.dropout, diffusion, _VARIANTS)
    facts = fit(net, loss, loop, work / "controlnet.pt", device, say, about=about)
    return net.requires_grad_(False), {**facts, "dropout": training.dropout, "cells": CELLS, **pictures}


def _variants(pipe: StableDiffusionPipeline, data: EmojiData, seed: int) -> tuple[Latents, torch.Tensor]:
    """Return the latents of all pictures, as they are and placed elsewhere, one set after the other, and their masks' cells."""
    pixels, sets, cells = data.pixels(torch.arange(len(data.emoji))), [], []
    for number in range(_VARIANTS):
        some = placed(pixels, places(len(pixels), generator(seed, "places", str(number)))) if number else pixels
        sets.append(latents_of(pipe.vae, some))
        cells.append(coarse(some / 2 + 0.5))
    mean, logvar = (torch.cat([getattr(each, name) for each in sets]) for name in ("mean", "logvar"))
    return Latents(mean, logvar, sets[0].scale), torch.cat(cells)
