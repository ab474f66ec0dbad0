"""PyTorch as it is: eager or compiled, in any float dtype, channels last."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu_unet.roads.torch_module import TorchDenoiser, float_unet, from_folder


def prepare(model: Path, folder: Path, calibration: Path, *, dtype: str) -> dict[str, Any]:
    """Write the U-Net in ``dtype``."""
    float_unet(model, dtype).save_pretrained(folder)
    return {}


def load(
    folder: Path,
    shapes: dict[str, list[int]],
    threads: int,
    *,
    dtype: str,
    compiled: bool = False,
    frozen: bool = False,
) -> TorchDenoiser:
    """Load it; ``frozen`` lets the compiler repack the weights for this machine, which keeps a second copy of them."""
    torch.set_num_threads(threads)
    unet = from_folder(folder, dtype).to(memory_format=torch.channels_last)
    if compiled:
        if frozen:
            import torch._inductor.config as inductor

            inductor.freezing = True
        unet.compile()
    return TorchDenoiser(unet, getattr(torch, dtype), no_grad=compiled)
