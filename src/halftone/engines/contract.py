"""The contract of an engine that runs a whole network: it takes the place of the network's ``forward``."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn


class AbstractNetworkEngine(ABC):
    """Runs networks that hold quantized layers. A file of ``engines/library`` defines one, named after the file.

    Subclasses are frozen dataclasses, whose fields are the engine's options. Every engine states how far its results are from those
    of ``simulate``, in its docstring, and is tested against it.
    """

    @abstractmethod
    def refusal(self) -> str | None:
        """Return why the engine does not run on this machine, or None."""

    @abstractmethod
    def session(self, network: nn.Module) -> Callable[..., Any]:
        """Return what runs in place of ``network.forward``: it takes and returns what that does.

        Nothing is computed here; what a call needs is made in the first one.
        """
