"""The loss of all that learns from captioned latents: a text-to-image model, its adapters, its ControlNets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from halftone.models.fingerprint import fingerprint
from halftone.zoo.autoencoder_training import encode
from halftone.zoo.denoiser_training import Diffusion, Training, denoising_loss
from halftone.zoo.emoji_data import EmojiData, prompts
from halftone.zoo.trainer import Loss

# (x_t [B, c, h, w], t [B], tokens [B, T], numbers of the images [B]) -> noise or velocity [B, c, h, w].
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Latents:
    """What an autoencoder makes of a set of images.

    Attributes:
        mean, logvar: ``[N, c, h, w]`` float32.
        scale: the autoencoder's ``scaling_factor``.
    """

    mean: torch.Tensor
    logvar: torch.Tensor
    scale: float

    def draw(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return latents ``[B, c, h, w]`` of the images numbered ``chosen``, as the denoiser sees them."""
        mean = self.mean[chosen]
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        return (mean + (0.5 * self.logvar[chosen]).exp() * noise) * self.scale

    def to(self, device: torch.device) -> "Latents":
        """Return them on ``device``."""
        return Latents(self.mean.to(device), self.logvar.to(device), self.scale)


def latents_of(vae: AutoencoderKL, pixels: torch.Tensor) -> Latents:
    """Return the latents of ``pixels`` ``[N, 3, S, S]`` in [-1, 1]."""
    return Latents(*encode(vae, pixels), vae.config.scaling_factor)


def frozen(pipe: StableDiffusionPipeline, device: str) -> str:
    """Move the networks of ``pipe`` to ``device`` and let none of them learn; return what tells its U-Net from others."""
    told = fingerprint(pipe.unet)[:16]
    pipe.to(device)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.eval().requires_grad_(False)
    return told


class _Tokens:
    """Token numbers of prompts, each looked up once: a tokenizer takes longer over a batch than a GPU over its step."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, torch.Tensor] = {}

    def of(self, texts: list[str]) -> torch.Tensor:
        """Return int64 ``[B, T]``, always of the full length, as the pipeline does: the U-Net attends to the padding too."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            rows = self.tokenizer(new, padding="max_length", truncation=True).input_ids
            self.known |= {text: torch.tensor(row) for text, row in zip(new, rows, strict=True)}
        return torch.stack([self.known[text] for text in texts])


def conditional_loss(
    predict: Predict,
    data: EmojiData,
    latents: Latents,
    tokenizer: CLIPTokenizer,
    schedule: Training,
    dropout: float,
    diffusion: Diffusion,
    variants: int = 1,
) -> Loss:
    """Return the denoising loss of images drawn by concept, each with a fresh prompt.

    Args:
        latents: of the images of ``data``, in its order; of several variants of all of them, one set after the other.
        dropout: share of empty prompts.
        variants: of each image, of which one is drawn. ``predict`` is given the number of the row among the latents.
    """

    tokens_of, latents = _Tokens(tokenizer), latents.to(diffusion.signal.device)

    def loss(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = data.draw(schedule.batch, generator)
        texts = prompts([data.emoji[n] for n in chosen.tolist()], dropout, generator)
        tokens = tokens_of.of(texts).to(diffusion.signal.device)
        rows = chosen
        if variants > 1:
            rows = chosen + len(data.emoji) * torch.randint(variants, chosen.shape, generator=generator)
        clean = latents.draw(rows, generator)
        return denoising_loss(lambda x, t: predict(x, t, tokens, rows), clean, diffusion, schedule.snr_gamma, generator)

    return loss
