"""``zoo:emoji-style-lora``: a LoRA that makes every emoji a print in one ink, for ``zoo:emoji-sd``."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from halftone.foundation.errors import ConfigError
from halftone.zoo.conditional_loss import conditional_loss, frozen, latents_of
from halftone.zoo.denoiser_training import Diffusion, Training
from halftone.zoo.emoji_data import EmojiData
from halftone.zoo.trainer import fit

NAME = "emoji-style-lora"
INK = (0.10, 0.14, 0.55)  # indigo, red green blue in [0, 1]
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_VISIBLE, _NEAR = 0.15, 0.1  # largest difference of a pixel's colours, in [0, 1], from white, and from the nearest tone
# Linears of attentions and feed-forwards, convolutions of residual blocks: adapters of both kinds.
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]


@dataclass(frozen=True)
class StyleTraining:
    """Hyper-parameters.

    Attributes:
        rank: of each adapter; its alpha is the same, so that a strength of 1 is what was trained.
        dropout: share of empty prompts: the style must hold without one too.
    """

    minutes: float = 30.0
    seed: int = 0
    rank: int = 8
    dropout: float = 0.1
    loop: Training = field(default_factory=lambda: Training(batch=16, lr=1e-3, warmup=50, ema=0.995))


def training_for(device: str, minutes: float, seed: int) -> StyleTraining:
    """Return the hyper-parameters that suit ``device`` (cpu, cuda ...): a GPU needs large batches to be busy."""
    usual = StyleTraining(minutes, seed)
    if torch.device(device).type == "cpu":
        return usual
    return replace(usual, loop=replace(usual.loop, batch=128, lr=2e-3))


def printed(pixels: torch.Tensor) -> torch.Tensor:
    """Return ``pixels`` ``[B, 3, S, S]`` in [-1, 1] in the style: luminance as a tone between the ink and white."""
    tone = ((pixels / 2 + 0.5) * _colours(_LUMINANCE)).sum(1, keepdim=True)
    return (_colours(INK) + (1 - _colours(INK)) * tone) * 2 - 1


def style_share(images: torch.Tensor) -> float:
    """Return which share of the pixels that are not white is in the style, of ``images`` ``[N, 3, S, S]`` in [0, 1]."""
    there = (1 - images).abs().amax(1) > _VISIBLE
    ink, way = _colours(INK), 1 - _colours(INK)
    tone = (((images - ink) * way).sum(1, keepdim=True) / way.square().sum()).clamp(0, 1)
    off = (images - (ink + way * tone)).abs().amax(1)
    return ((off < _NEAR) & there).sum().item() / max(int(there.sum()), 1)


def _colours(values: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


class _Adapters(nn.Module):
    """The adapters' parameters alone, shared with the U-Net that holds them: what is trained, averaged and kept."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        for name, parameter in unet.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)


def train(
    pipe: StableDiffusionPipeline,
    data: EmojiData,
    training: StyleTraining,
    work: Path,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Give ``pipe.unet`` a LoRA called ``style``, trained on ``data`` in the style, and return the card's facts.

    Text encoder, autoencoder and the U-Net's own weights stay as they are. ``work`` holds a checkpoint, from which the same
    call goes on.

    Raises:
        ConfigError: PEFT is not installed, or the checkpoint is another training's.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError(f"zoo:{NAME}", "PEFT", "none", "pip install 'peft>=0.17'") from error

    base = frozen(pipe, device)
    latents = latents_of(pipe.vae, printed(data.pixels(torch.arange(len(data.emoji)))))
    torch.manual_seed(training.seed)
    pipe.unet.add_adapter(LoraConfig(r=training.rank, lora_alpha=training.rank, target_modules=_TARGETS), "style")

    def predict(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            text = pipe.text_encoder(tokens)[0]
        return pipe.unet(x, t, text).sample

    about = {"data": data.digest, "base": base}
    loop = replace(training.loop, minutes=training.minutes, seed=training.seed)
    diffusion = Diffusion.of(pipe.scheduler, device)
    loss = conditional_loss(predict, data, latents, pipe.tokenizer, loop, training.dropout, diffusion)
    facts = fit(_Adapters(pipe.unet), loss, loop, work / "style.pt", device, say, about=about)
    pipe.unet.requires_grad_(False)
    return {**facts, "rank": training.rank, "dropout": training.dropout, "targets": _TARGETS, "ink": INK}
