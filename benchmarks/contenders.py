"""Denoisers to be timed against each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import halftone
from halftone.artifact import load_pipeline
from halftone.evaluate.bench import Contender
from halftone.models.denoiser import denoiser
from halftone.models.example_inputs import example_inputs


def contender(name: str, folder: Path, dtype: torch.dtype, batch: int) -> Contender:
    """Return the denoiser of the pipeline in ``folder``, on integer kernels if it is quantized, called with ``batch`` rows."""

    def make() -> Callable[[], Any]:
        module = denoiser(load_pipeline(folder, dtype=dtype)).eval()
        halftone.set_engine(module, "torch")
        args, kwargs = example_inputs(module, batch)
        return lambda: module(*args, **kwargs)

    return Contender(name, make)
