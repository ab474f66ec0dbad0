"""The contract of a calibration sampling strategy."""

from abc import ABC, abstractmethod

import torch


class AbstractSelect(ABC):
    """Frozen dataclass in a file of :mod:`halftone.calibrate.select`: which denoiser calls the calibration samples come from."""

    @abstractmethod
    def choose(self, calls: int, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return ``count`` call indices (int64, with repetition) out of ``0 .. calls-1``; call 0 is the noisiest.

        The k-th sample taken from a call comes from the k-th trajectory.
        """
