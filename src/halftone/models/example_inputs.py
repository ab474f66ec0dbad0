"""Inputs of the right shapes for a denoiser or another network of a pipeline: to time it, to count its work, or to run it once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from halftone.foundation.errors import ConfigError
from halftone.foundation.seeds import generator

Call = tuple[tuple[Any, ...], dict[str, Any]]
_SIZE = 32  # where the config names none
_TOKENS = 77  # of CLIP, which most text-conditioned denoisers were trained with
_TEXT_TOKENS = 120  # of the longer text encoders of transformers


def example_inputs(
    denoiser: nn.Module, batch: int, seed: int = 0, timestep: int = 500, size: int | None = None
) -> Call:
    """Return ``(args, kwargs)`` of one call with ``batch`` samples of noise, on the model's device and in its dtype.

    Serves ``UNet2DModel``, ``UNet2DConditionModel`` (SD and SDXL), ``DiTTransformer2DModel``, ``Transformer2DModel``,
    ``PixArtTransformer2DModel``, ``SD3Transformer2DModel``, ``ControlNetModel``, the decoder of an ``AutoencoderKL``, CLIP's text
    encoders, and what subclasses them.

    Args:
        batch: at least 1.
        seed: of the noise; equal seeds give equal inputs.
        size: height and width of the latents; None for those of the config.

    Raises:
        ConfigError: nobody knows what this class takes.
    """
    for base in type(denoiser).__mro__:
        make = _MAKERS.get(base.__name__)
        if make is not None:
            return make(denoiser, _Draw(denoiser, seed, size), batch, timestep)
    known = ", ".join(sorted(_MAKERS))
    raise ConfigError(type(denoiser).__name__, f"a denoiser whose inputs are known ({known})", "another class")


class _Draw:
    """Draws noise on the CPU, then moves it, so that numbers do not depend on the device."""

    def __init__(self, denoiser: nn.Module, seed: int, size: int | None = None) -> None:
        self.random = generator(seed, "example inputs")
        self.device, self.dtype = _home(denoiser)
        self.config: Any = getattr(denoiser, "config", None)
        self.size = size

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random).to(self.device, self.dtype)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.random).to(self.device)

    def full(self, value: int, batch: int) -> torch.Tensor:
        return torch.full((batch,), value, device=self.device)

    def sample(self, batch: int) -> torch.Tensor:
        return self.noise(batch, self.config.in_channels, *self.latents)

    @property
    def latents(self) -> tuple[int, int]:
        """Height and width of what the denoiser reads."""
        size = self.size or getattr(self.config, "sample_size", None) or _SIZE
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return height, width


def _home(denoiser: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype of the float parameters; codes and float32 scales say nothing about the dtype."""
    for parameter in denoiser.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), torch.float32


def _unet(denoiser: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    labels = {}
    count = getattr(draw.config, "num_class_embeds", None)
    if getattr(draw.config, "class_embed_type", None) == "timestep":
        count = 1000
    if getattr(denoiser, "class_embedding", None) is not None and count:
        labels["class_labels"] = draw.integers(count, batch)
    return (draw.sample(batch), draw.full(timestep, batch)), labels


def _conditional_unet(denoiser: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    config = draw.config
    width = config.cross_attention_dim
    width = width[-1] if isinstance(width, list | tuple) else width
    if getattr(config, "encoder_hid_dim", None):
        width = config.encoder_hid_dim
    args, kwargs = _unet(denoiser, draw, batch, timestep)
    kwargs["encoder_hidden_states"] = draw.noise(batch, _TOKENS, width)
    if getattr(config, "addition_embed_type", None) == "text_time":
        ids = 6  # size, crop and target size of SDXL
        pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        kwargs["added_cond_kwargs"] = {
            "text_embeds": draw.noise(batch, pooled),
            "time_ids": draw.full(1024, batch).to(draw.dtype).unsqueeze(1).expand(-1, ids),
        }
    elif getattr(config, "addition_embed_type", None) is not None:
        raise ConfigError(type(denoiser).__name__, "added conditions of SDXL or none", config.addition_embed_type)
    if getattr(config, "time_cond_proj_dim", None):
        kwargs["timestep_cond"] = draw.noise(batch, config.time_cond_proj_dim)
    return args, kwargs


def _class_transformer(denoiser: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    kwargs: dict[str, Any] = {"timestep": draw.full(timestep, batch)}
    config = draw.config
    if getattr(config, "norm_type", None) == "ada_norm_zero":
        kwargs["class_labels"] = draw.integers(config.num_embeds_ada_norm, batch)
    if getattr(config, "cross_attention_dim", None):
        kwargs["encoder_hidden_states"] = draw.noise(batch, _TOKENS, config.cross_attention_dim)
    return (draw.sample(batch),), kwargs


def _pixart(denoiser: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    config = draw.config
    conditions: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if getattr(denoiser, "use_additional_conditions", False):
        conditions = {"resolution": draw.noise(batch, 2), "aspect_ratio": draw.noise(batch, 1)}
    return (draw.sample(batch),), {
        "encoder_hidden_states": draw.noise(batch, _TEXT_TOKENS, config.caption_channels),
        "timestep": draw.full(timestep, batch),
        "added_cond_kwargs": conditions,
    }


def _sd3(denoiser: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    return (draw.sample(batch),), {
        "encoder_hidden_states": draw.noise(batch, _TEXT_TOKENS, draw.config.joint_attention_dim),
        "pooled_projections": draw.noise(batch, draw.config.pooled_projection_dim),
        "timestep": draw.full(timestep, batch),
    }


def _controlnet(net: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    (sample, steps), kwargs = _conditional_unet(net, draw, batch, timestep)
    # Each of the embedding's blocks but the first halves the picture.
    scale = 2 ** (len(draw.config.conditioning_embedding_out_channels) - 1)
    kwargs["controlnet_cond"] = draw.noise(
        batch, draw.config.conditioning_channels, *(scale * side for side in draw.latents)
    )
    return (sample, steps), kwargs


def _decoder(decoder: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    first: Any = decoder.conv_in
    return (draw.noise(batch, first.in_channels, *draw.latents),), {}


def _text_encoder(encoder: nn.Module, draw: _Draw, batch: int, timestep: int) -> Call:
    return (draw.integers(draw.config.vocab_size, batch, draw.config.max_position_embeddings),), {}


_MAKERS: dict[str, Callable[[nn.Module, _Draw, int, int], Call]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _conditional_unet,
    "DiTTransformer2DModel": _class_transformer,
    "Transformer2DModel": _class_transformer,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "ControlNetModel": _controlnet,
    "Decoder": _decoder,
    "CLIPTextModel": _text_encoder,
    "CLIPTextModelWithProjection": _text_encoder,
}
