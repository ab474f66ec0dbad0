"""torchao: int8 linears, activations quantized row by row as they come. It has no int8 convolution; those stay bf16."""

from pathlib import Path
from typing import Any

import torch
import torchao
from diffusers import AutoModel, TorchAoConfig
from torchao.quantization import Int8DynamicActivationInt8WeightConfig

from benchmarks.cpu_unet.roads.torch_module import TorchDenoiser, from_folder


def prepare(model: Path, folder: Path, calibration: Path) -> dict[str, Any]:
    """Quantize as diffusers' documentation says, and save."""
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    unet = AutoModel.from_pretrained(str(model / "unet"), quantization_config=config, torch_dtype=torch.bfloat16)
    unet.save_pretrained(folder)
    return {"torchao": torchao.__version__}


def load(folder: Path, shapes: dict[str, list[int]], threads: int, *, compiled: bool = False) -> TorchDenoiser:
    """Load it through diffusers; torchao is made for ``torch.compile``."""
    torch.set_num_threads(threads)
    unet = from_folder(folder, "bfloat16").to(memory_format=torch.channels_last)
    if compiled:
        unet.compile()
    return TorchDenoiser(unet, torch.bfloat16, no_grad=True)
