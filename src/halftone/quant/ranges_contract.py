"""The contract of a range estimator."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch

from halftone.quant.spec import QuantSpec


class AbstractRange(ABC):
    """Frozen dataclass whose fields are its hyper-parameters; lives in a file of :mod:`halftone.quant.ranges`."""

    @abstractmethod
    def fit(self, batches: Iterable[torch.Tensor], spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(low, high)``, each float32 ``[groups]``, for batches of values ``[groups, n]``."""
