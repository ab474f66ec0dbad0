"""The float models: the real Stable Diffusion 1.5 U-Net with random weights, and trained ones of the zoo."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cpu_unet.inputs import Inputs

# From the public model's unet/config.json; what is not said is diffusers' default. 859,520,964 parameters.
SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "attention_head_dim": 8,  # diffusers' name for the number of heads here
    "cross_attention_dim": 768,
}
SD15_PARAMETERS = 859_520_964
# What its autoencoder makes of a picture's side.
_LATENT = 8
_TOKENS = 77
_STEPS = 20
_PROMPTS = ("a photograph of an astronaut riding a horse", "a watercolour of a fox")
_EVALUATED = 64
_CALIBRATED = 256


@dataclass(frozen=True)
class Calibration:
    """How a model is sampled from for calibration.

    Attributes:
        samples: denoiser inputs; None leaves it to the recipe.
        arguments: of the pipeline.
        each: of the pipeline, one value a trajectory.
    """

    steps: int = _STEPS
    seed: int = 0
    samples: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    each: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def random_weights(model: Path) -> bool:
    """Return whether the model was made here, untrained."""
    return (model / "untrained").exists()


def calibration_of(model: Path) -> Calibration:
    """Return how to calibrate: a model with random weights briefly, as only its speed is measured."""
    if random_weights(model):
        # A few calls at a quarter of the size: ranges of noise that no image depends on.
        small = {"height": 256, "width": 256, "guidance_scale": 1.0}
        return Calibration(steps=2, samples=2, arguments=small, each={"prompt": list(_PROMPTS)})
    texts = captions(model)
    if texts:
        return Calibration(arguments={"guidance_scale": 5.0}, each={"prompt": texts})
    return Calibration()


def captions(model: Path) -> list[str]:
    """Return the captions that a text-to-image model of the zoo brings, and that it is not evaluated with."""
    from safetensors import safe_open

    file = model / "alignment.safetensors"
    if not file.is_file():
        return []
    with safe_open(file, "np") as stored:
        said = {key: json.loads(value) for key, value in stored.metadata().items()}
    return [text for text in dict.fromkeys(said["captions"]) if text not in set(said["prompts"])]


def make_sd15(folder: Path, unet: Mapping[str, Any] | None = None) -> None:
    """Write a whole Stable Diffusion pipeline: the real U-Net, and the smallest text encoder and autoencoder that fit it.

    Weights are random and the same each time.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from halftone.zoo import emoji_tokenizer

    config = {**SD15_UNET, **(unet or {})}
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DConditionModel(**config)
        vae = AutoencoderKL(
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=config["in_channels"],
            sample_size=config["sample_size"] * _LATENT,
        )
        words = emoji_tokenizer.train(3 * _PROMPTS, 600, partial / "tokenizer")
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=config["cross_attention_dim"],
                intermediate_size=config["cross_attention_dim"],
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=_TOKENS,
                bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=words, unet=network.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(partial)
    (partial / "untrained").touch()
    partial.rename(folder)


def noise(model: Path, pixels: int, batch: int, calls: int) -> Inputs:
    """Return calls with noise, one prompt's embeddings and falling timesteps, as a sampler makes them."""
    config = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
    vae = model / "vae" / "config.json"
    blocks = json.loads(vae.read_text(encoding="utf-8"))["block_out_channels"] if vae.exists() else [0]
    side = pixels // 2 ** (len(blocks) - 1)
    random = np.random.default_rng(0)
    sample = random.standard_normal((calls, batch, config["in_channels"], side, side), np.float32)
    timestep = np.linspace(951, 1, calls).round().astype(np.int64)
    width = config.get("cross_attention_dim") if config["_class_name"] == "UNet2DConditionModel" else None
    text = random.standard_normal((1, batch, _TOKENS, width), np.float32) if width else None
    return Inputs(sample, timestep, text)


def recorded(model: Path, evaluation: bool) -> Inputs:
    """Return inputs of the float model's own sampling, one row a call: those to calibrate with, or others to compare on."""
    from halftone.artifact import load_pipeline
    from halftone.calibrate.record import record
    from halftone.recipes.recipe import Calibration as Said

    how = calibration_of(model)
    count = _EVALUATED if evaluation else how.samples or _CALIBRATED
    pipe = load_pipeline(model, dtype=torch.float32)
    seed = how.seed + (1000 if evaluation else 0)
    found = record(pipe, Said().selection(), count, how.steps, seed, each=how.each, **how.arguments)
    args, kwargs = found.args, dict(found.kwargs)
    sample, timestep = args[0], args[1] if len(args) > 1 else kwargs["timestep"]
    text = kwargs.get("encoder_hidden_states")
    rows = None if text is None else text.unsqueeze(1).numpy()
    return Inputs(sample.unsqueeze(1).numpy(), timestep.numpy().astype(np.int64), rows)
