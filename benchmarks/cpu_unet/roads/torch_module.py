"""U-Nets that are PyTorch modules: how they are read from folders, and called."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Libraries load much of themselves on first use; what a process weighs that has only imported them includes these.
from diffusers import AutoModel, UNet2DConditionModel, UNet2DModel
from torch import nn

assert UNet2DConditionModel and UNet2DModel


def from_folder(folder: Path, dtype: str) -> Any:
    """Return the U-Net in a folder of its own."""
    return AutoModel.from_pretrained(str(folder), **{_dtype_name(): getattr(torch, dtype)}).eval()


def float_unet(model: Path, dtype: str = "float32") -> Any:
    """Return the U-Net of a pipeline's folder."""
    return from_folder(model / "unet", dtype)


def _dtype_name() -> str:
    """Return what this version of diffusers calls it."""
    from diffusers.pipelines import pipeline_utils

    return "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"


class TorchDenoiser:
    """See :class:`benchmarks.cpu_unet.roads.contract.Denoiser`."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype, no_grad: bool = False) -> None:
        self.unet, self.dtype = unet, dtype
        # Compiled code is made for tensors outside inference mode, and would be compiled twice.
        self.mode = torch.no_grad if no_grad else torch.inference_mode
        self._text: tuple[np.ndarray, torch.Tensor] | None = None

    def take(self, sample: np.ndarray, timestep: int, text: np.ndarray | None) -> dict[str, Any]:
        given = {"sample": torch.from_numpy(sample).to(self.dtype), "timestep": torch.tensor(timestep)}
        if text is not None:
            if self._text is None or self._text[0] is not text:
                self._text = text, torch.from_numpy(text).to(self.dtype)
            given["encoder_hidden_states"] = self._text[1]
        return given

    def call(self, given: dict[str, Any]) -> torch.Tensor:
        with self.mode():
            found: torch.Tensor = self.unet(**given, return_dict=False)[0]
            return found

    def give(self, output: torch.Tensor) -> np.ndarray:
        found: np.ndarray = output.detach().float().numpy()
        return found


class Plain(nn.Module):
    """A U-Net with positional tensors and a tensor as its output, for exporters."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.conditional = "encoder_hidden_states" in inspect.signature(unet.forward).parameters

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        given = {"encoder_hidden_states": text} if self.conditional else {}
        found: torch.Tensor = self.unet(sample, timestep, **given, return_dict=False)[0]
        return found

    def example(self, batch: int = 2) -> tuple[torch.Tensor, ...]:
        """Return inputs to trace with."""
        config = self.unet.config
        size = config.sample_size if isinstance(config.sample_size, int) else config.sample_size[0]
        given = torch.randn(batch, config.in_channels, size, size), torch.tensor(500)
        return (*given, torch.randn(batch, 77, config.cross_attention_dim)) if self.conditional else given
