"""Which model a quantizer belongs to, known without keeping it alive."""

import weakref
from typing import Any

from torch import nn


class Owner:
    """A weak reference to a model, held by the model's own quantizer; a copy of the model gets one to the copy."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._reference = weakref.ref(model) if model is not None else None

    def __call__(self) -> nn.Module | None:
        return self._reference() if self._reference is not None else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Owner":
        # Copied alone, the quantizer stays with the model it knows.
        return Owner(memo.get(id(self()), self()))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Owner, (self(),))
