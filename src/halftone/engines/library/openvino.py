"""OpenVINO: the whole network as one graph of 8-bit operators, with the artifact's own codes and scales."""

from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from torch import nn

from halftone.engines.contract import AbstractNetworkEngine, AbstractSession
from halftone.foundation.errors import ConfigError

_EXTRA = "pip install 'openvino>=2025.0'"
_OLDEST = (2025, 0)


def installed() -> str | None:
    """Return the version of the installed package, or None."""
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Openvino(AbstractNetworkEngine):
    """Exports a network on its first call and runs it on the CPU.

    In ``f32`` it differs from ``simulate`` where two ways to sum put a number on different sides of a tie, as the engine ``torch``
    does; in ``bf16`` also by that format's rounding of what is float in the network. See docs/engines.md for both, measured.

    Attributes:
        precision: of the float operators; ``auto`` is OpenVINO's choice, which is bf16 where the processor has it.
        folder: of :func:`halftone.engines.openvino.folder.save`, read in place of exporting.
        shapes: how many input shapes stay compiled; each has its own copy of the weights.
    """

    precision: Literal["auto", "f32", "bf16"] = "auto"
    folder: str | None = None
    shapes: int = 2

    def __post_init__(self) -> None:
        if self.shapes < 1:
            raise ConfigError("shapes", "at least 1", str(self.shapes))

    def refusal(self) -> str | None:
        version = installed()
        if version is None:
            return f"the package openvino is not installed ({_EXTRA})"
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
            return f"openvino {version} is older than {_OLDEST[0]}.{_OLDEST[1]} ({_EXTRA})"
        return None

    def session(self, network: nn.Module) -> AbstractSession:
        from halftone.engines.openvino.session import Session

        return Session(network, self.precision, self.folder, self.shapes)
