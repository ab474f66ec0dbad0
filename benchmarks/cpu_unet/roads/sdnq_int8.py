"""SDNQ: data-free int8 weights, activations quantized row by row as they come, on the kernels it finds."""

from pathlib import Path
from typing import Any

import sdnq
import torch

from benchmarks.cpu_unet.roads.torch_module import TorchDenoiser, float_unet, from_folder


def prepare(model: Path, folder: Path, calibration: Path, *, convolutions: bool) -> dict[str, Any]:
    """Quantize the weights and ask for integer products; of convolutions too, or of linears alone."""
    config = sdnq.SDNQConfig(
        weights_dtype="int8",
        use_quantized_matmul=True,
        quant_conv=convolutions,
        use_quantized_matmul_conv=convolutions,
    )
    unet = sdnq.sdnq_post_load_quant(
        float_unet(model, "bfloat16"), quantization_config=config, torch_dtype=torch.bfloat16
    )
    sdnq.save_sdnq_model(unet, str(folder), sdnq_config=config)
    return {"sdnq": str(sdnq.sdnq_version)}


def load(folder: Path, shapes: dict[str, list[int]], threads: int) -> TorchDenoiser:
    """Load it through diffusers; SDNQ compiles its kernels where it can."""
    torch.set_num_threads(threads)
    unet = from_folder(folder, "bfloat16").to(memory_format=torch.channels_last)
    return TorchDenoiser(unet, torch.bfloat16, no_grad=True)
