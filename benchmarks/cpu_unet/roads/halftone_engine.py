"""Ours: a quantized artifact on one of Halftone's engines, inside an ordinary diffusers U-Net."""

from pathlib import Path
from typing import Any

import torch

import halftone
from benchmarks.cpu_unet.roads.torch_module import TorchDenoiser, from_folder
from halftone.foundation.allocator import keep_freed_memory
from halftone.nn.layers import quantized_layers
from halftone.nn.running import set_weights


def prepare(
    model: Path, folder: Path, calibration: Path, *, recipe: str, budget: str = "fast", overrides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Quantize the pipeline's U-Net and write its artifact, alone.

    The calibration samples come from the pipeline's own sampling, drawn as those in ``calibration`` are.
    """
    from benchmarks.cpu_unet.models import calibration_of
    from halftone.artifact import load_pipeline

    how = calibration_of(model)
    given = [f"calibration.arguments={how.arguments}", *overrides]
    if how.samples is not None:
        given += [f"calibration.samples={how.samples}", f"steps.activations.samples={how.samples}"]
    pipe = load_pipeline(model, dtype=torch.float32)
    result = halftone.quantize(
        pipe, recipe, steps=how.steps, seed=how.seed, budget=budget, overrides=given, each=how.each
    )
    result.pipe.unet.save_pretrained(folder)
    return {"seconds": result.report["seconds"]}


def load(
    folder: Path,
    shapes: dict[str, list[int]],
    threads: int,
    *,
    engine: str,
    dtype: str = "float32",
    compiled: bool = False,
    weights: str = "ready",
    **options: Any,
) -> TorchDenoiser:
    """Load it; ``weights`` is how layers hold their codes, ``options`` are the engine's own."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the command does
    unet = from_folder(folder, dtype).to(memory_format=torch.channels_last)
    halftone.set_engine(unet, engine, **options)
    set_weights(unet, weights)
    if compiled:
        unet.compile()
    return TorchDenoiser(unet, getattr(torch, dtype), no_grad=compiled)


def kernels(denoiser: TorchDenoiser) -> dict[str, int]:
    """Return how many layers each kernel serves."""
    chosen = [layer.choice().name for _, layer in quantized_layers(denoiser.unet)]
    return {name: chosen.count(name) for name in sorted(set(chosen))}
