"""What a road is: two functions, and the thing that the second returns."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Denoiser(Protocol):
    """A loaded U-Net.

    ``take`` is not timed: it brings one input into the road's own form, as a pipeline holds it between two calls. A text that
    is the same array as before is the same object afterwards, as one prompt's embeddings are for all steps.
    """

    def take(self, sample: np.ndarray, timestep: int, text: np.ndarray | None) -> Any:
        """Return what ``call`` takes, of ``sample`` ``[B, C, H, W]`` and ``text`` ``[B, tokens, width]``, both float32."""

    def call(self, given: Any) -> Any:
        """Run the U-Net once."""

    def give(self, output: Any) -> np.ndarray:
        """Return the output as float32 ``[B, C, H, W]``."""


class Road(Protocol):
    """A module of this package."""

    def prepare(self, model: Path, folder: Path, calibration: Path, **options: Any) -> dict[str, Any]:
        """Write into ``folder`` what ``load`` needs, and return facts to keep.

        Args:
            model: the float pipeline's folder.
            calibration: a file of :class:`benchmarks.cpu_unet.inputs.Inputs`.
        """

    def load(self, folder: Path, shapes: dict[str, list[int]], threads: int, **options: Any) -> Denoiser:
        """Load a prepared U-Net for inputs of these shapes: ``sample`` and, where there is one, ``text``."""
