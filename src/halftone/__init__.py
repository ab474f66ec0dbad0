"""Halftone: from a trained diffusion model to a low-bit one that really runs in low bits.

Importing this module lets diffusers load Halftone's models: ``DiffusionPipeline.from_pretrained(folder)``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from halftone.artifact.registration import register

if TYPE_CHECKING:
    from halftone.api import HalftoneConfig, Result, quantize
    from halftone.artifact.watch import TrajectoryWarning
    from halftone.engines import set_engine
    from halftone.kernels.machine import SimulatedWarning
    from halftone.models.adapters import fuse_lora

__version__ = "0.1.0"
__all__ = [
    "HalftoneConfig",
    "Result",
    "SimulatedWarning",
    "TrajectoryWarning",
    "__version__",
    "fuse_lora",
    "quantize",
    "set_engine",
]

register()

# Imported on first use: `halftone --help` and `import halftone` need not wait for torch.
_HOMES = {
    "HalftoneConfig": "halftone.api",
    "Result": "halftone.api",
    "SimulatedWarning": "halftone.kernels.machine",
    "TrajectoryWarning": "halftone.artifact.watch",
    "fuse_lora": "halftone.models.adapters",
    "quantize": "halftone.api",
    "set_engine": "halftone.engines",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'halftone' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
