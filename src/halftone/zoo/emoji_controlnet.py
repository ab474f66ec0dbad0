"""``zoo:emoji-controlnet``: a ControlNet that puts an emoji where a coarse mask is, for ``zoo:emoji-sd``."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from scipy import ndimage

from halftone.zoo.conditional_loss import conditional_loss, frozen, latents_of
from halftone.zoo.denoiser_training import Diffusion, Training
from halftone.zoo.emoji_data import EmojiData
from halftone.zoo.trainer import fit

NAME = "emoji-controlnet"
CELLS = 8  # of a mask, to a side
_WHITE = 0.94  # a pixel all of whose colours are above it is background
_EMBEDDING = (16, 32, 64)  # channels; its two strides of two bring pixels to the latents' size


@dataclass(frozen=True)
class ControlTraining:
    """Hyper-parameters.

    Attributes:
        dropout: share of empty prompts, half as many again as the base model had: then the mask alone must do.
    """

    minutes: float = 90.0
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


def masks(images: torch.Tensor) -> torch.Tensor:
    """Return the coarse masks of ``images`` ``[N, 3, S, S]`` in [0, 1], which are ControlNet inputs of the same shape and range.

    A cell is white where at least half of it belongs to the silhouette, else black.
    """
    size = images.shape[-1]
    share = torch.nn.functional.adaptive_avg_pool2d(silhouettes(images)[:, None].float(), CELLS)
    wide = torch.nn.functional.interpolate((share >= 0.5).float(), size=(size, size), mode="nearest")
    return wide.expand(-1, 3, -1, -1).contiguous()


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
    pixels = data.pixels(torch.arange(len(data.emoji)))
    latents, given = latents_of(pipe.vae, pixels), masks(pixels / 2 + 0.5).to(device)
    torch.manual_seed(training.seed)
    net = controlnet(pipe).requires_grad_(True).to(device)

    def predict(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            text = pipe.text_encoder(tokens)[0]
        down, middle = net(x, t, text, given[chosen], return_dict=False)
        control = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return pipe.unet(x, t, text, **control).sample

    about = {"data": data.digest, "base": base}
    loop = replace(training.loop, minutes=training.minutes, seed=training.seed)
    diffusion = Diffusion.of(pipe.scheduler, device)
    loss = conditional_loss(predict, data, latents, pipe.tokenizer, loop, training.dropout, diffusion)
    facts = fit(net, loss, loop, work / "controlnet.pt", device, say, about=about)
    return net.requires_grad_(False), {**facts, "dropout": training.dropout, "cells": CELLS}
