"""``zoo:emoji-sd``: a small Stable Diffusion of emoji, 64x64, as a diffusers ``StableDiffusionPipeline``."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NAME = "emoji-sd"
# Stable Diffusion's scaled_linear, with a larger beta_end (0.02, not 0.012). A white picture with one thing on it is told
# by its mean: over the 256 positions of these latents the mean still has a signal-to-noise ratio of 1.2 at the last step
# of 0.012, and the model would trust it there, while sampling starts from noise without any. At 0.02 it is 0.06.
# Velocity, as Stable Diffusion 2.1: predicting noise, almost nothing is learned from timesteps where the picture's colours and
# outline are decided (after 150,000 images its idea of the clean latents there was worse than the mean of all emoji).
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    # No setting of PNDM's: kept for DDIM, which, made from this configuration, would else cut latents off at 1.
    "clip_sample": False,
}


@dataclass(frozen=True)
class Architecture:
    """The sizes of the networks, as keyword arguments of their configurations.

    ``vocabulary`` is the tokenizer's upper limit; what it learned is what the text encoder gets.
    """

    image_size: int
    vocabulary: int
    autoencoder: dict[str, Any]
    text: dict[str, Any]
    unet: dict[str, Any]


# 1.7 + 1.6 + 10.6 million parameters. The U-Net's full resolution has no attention, as SDXL's: at 16x16 it would take a
# fifth of the time and says little that 8x8 does not.
STANDARD = Architecture(
    image_size=64,
    vocabulary=4096,
    autoencoder={
        "block_out_channels": (32, 64, 96),
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "latent_channels": 4,
    },
    text={"hidden_size": 160, "num_hidden_layers": 3, "num_attention_heads": 5},
    unet={
        "block_out_channels": (96, 160, 192),
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "attention_head_dim": (3, 5, 6),  # diffusers' name for the number of heads here: 32 channels each
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
)


def autoencoder(size: Architecture, seed: int = 0) -> AutoencoderKL:
    """Return the untrained autoencoder: images ``[N, 3, S, S]`` in [-1, 1], latents of a quarter of the side."""
    torch.manual_seed(seed)
    levels = len(size.autoencoder["block_out_channels"])
    return AutoencoderKL(
        sample_size=size.image_size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **size.autoencoder,
    )


def text_encoder(size: Architecture, tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    """Return the untrained causal text encoder for the tokens of ``tokenizer``."""
    torch.manual_seed(seed)
    width = size.text["hidden_size"]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        intermediate_size=4 * width,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size.text,
    )
    return CLIPTextModel(config)


def unet(size: Architecture, seed: int = 0) -> UNet2DConditionModel:
    """Return the untrained denoiser of the latents."""
    torch.manual_seed(seed)
    channels = size.autoencoder["latent_channels"]
    return UNet2DConditionModel(
        sample_size=size.image_size // 2 ** (len(size.autoencoder["block_out_channels"]) - 1),
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=size.text["hidden_size"],
        **size.unet,
    )


def assemble(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text: CLIPTextModel, denoiser: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Return the pipeline of these parts, with PNDM as its scheduler and no safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=PNDMScheduler.from_config(SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
