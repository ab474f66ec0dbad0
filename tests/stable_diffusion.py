"""The smallest complete Stable Diffusion: tokenizer, text encoder, autoencoder and conditional U-Net, all untrained."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tests.emoji import SMALL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import halftone
from halftone.artifact import load_pipeline, save_pipeline
from halftone.nn import QuantizedLayer
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


def tiny_stable_diffusion_xl(tokenizer: Path) -> StableDiffusionXLPipeline:
    """Return a float SDXL pipeline: two text encoders, added conditions, an autoencoder that is widened to decode."""
    small = tiny_stable_diffusion(tokenizer)
    torch.manual_seed(0)
    ids = {key: getattr(small.text_encoder.config, key) for key in ("vocab_size", "max_position_embeddings")}
    ids |= {f"{name}_token_id": getattr(small.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    words = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16, **ids
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=2 * 16,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    encoders = CLIPTextModel(words).eval(), CLIPTextModelWithProjection(words).eval()
    scheduler = DDIMScheduler(clip_sample=False)
    pipe = StableDiffusionXLPipeline(
        vae.eval(), *encoders, small.tokenizer, small.tokenizer, unet.eval(), scheduler, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quantized_stable_diffusion(place: Path) -> Path:
    """Return the folder of one whose U-Net has 8-bit weights and inputs, calibrated with guidance over PNDM's calls."""
    pipe = tiny_stable_diffusion(place / "tokenizer")
    decode, pipe.vae.decode = pipe.vae.decode, None  # calibration does not look at images
    overrides = ["calibration.samples=12", "calibration.arguments={guidance_scale: 5.0}"]
    result = halftone.quantize(pipe, "gptq-w8a8", steps=4, budget="demo", each={"prompt": PROMPTS}, overrides=overrides)
    pipe.vae.decode = decode
    assert result.report["trajectory"]["calls"] == 5, "PNDM calls once more than it steps"
    return save_pipeline(pipe, place / "out")


def load_quietly(folder: Path) -> StableDiffusionPipeline:
    """Return the pipeline of a folder, without progress bars."""
    loaded = load_pipeline(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipe: Any, prompt: Any = "red circle", **how: Any) -> np.ndarray:
    given = {"num_inference_steps": 3, "output_type": "np", **how}
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **given).images


def quantized(module: torch.nn.Module) -> int:
    return sum(isinstance(layer, QuantizedLayer) and layer.scheme is not None for layer in module.modules())
