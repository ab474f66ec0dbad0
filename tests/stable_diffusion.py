"""The smallest complete Stable Diffusion: tokenizer, text encoder, autoencoder and conditional U-Net, all untrained."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from tests.emoji import SMALL

from halftone.zoo import emoji_sd, emoji_tokenizer

PROMPTS = ["red circle", "a blue square that waves", "green hand"]


def tiny_stable_diffusion(tokenizer: Path, seed: int = 0) -> StableDiffusionPipeline:
    """Return a float pipeline, the same for the same seed; its tokenizer is made in a folder, or taken from there."""
    if tokenizer.exists():
        words = emoji_tokenizer.load(tokenizer)
    else:
        words = emoji_tokenizer.train(3 * PROMPTS, SMALL.vocabulary, tokenizer)
    parts = emoji_sd.autoencoder(SMALL), words, emoji_sd.text_encoder(SMALL, words), emoji_sd.unet(SMALL)
    pipe = emoji_sd.assemble(*parts)
    random = torch.Generator().manual_seed(seed)
    # Some layers start at zero, which would hide mistakes.
    for value in pipe.unet.parameters():
        value.data.normal_(0, 0.1, generator=random)
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe
