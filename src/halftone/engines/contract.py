"""The contract of an engine that runs a whole network: it takes the place of the network's ``forward``."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import nn

INTEGERS = ("u8", "i8")


class AbstractSession(ABC):
    """Runs one network: takes and returns what its ``forward`` does."""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    @abstractmethod
    def products(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, str]:
        """Return the element type in which each quantized layer multiplies in a call with these arguments, by path.

        ``u8`` and ``i8`` are integers; a layer that is missing has no product of its own left.
        """

    @abstractmethod
    def save(self, folder: str | Path, args: tuple, kwargs: dict[str, Any], overwrite: bool = False) -> Path:
        """Write the network as the engine runs it in calls like this one, wholly or not at all, and return the folder.

        Raises:
            OutputError: the folder exists and may not be overwritten, or cannot be written.
        """


class AbstractNetworkEngine(ABC):
    """Runs networks that hold quantized layers. A file of ``engines/library`` defines one, named after the file.

    Subclasses are frozen dataclasses, whose fields are the engine's options. Every engine states how far its results are from those
    of ``simulate``, in its docstring, and is tested against it.
    """

    @abstractmethod
    def refusal(self) -> str | None:
        """Return why the engine does not run on this machine, or None."""

    @abstractmethod
    def session(self, network: nn.Module) -> AbstractSession:
        """Return what runs in place of ``network.forward``. Nothing is computed yet: what a call needs is made in the first."""
