"""Halftone: from a trained diffusion model to a low-bit one that really runs in low bits.

Importing this module lets diffusers load Halftone's models: ``DiffusionPipeline.from_pretrained(folder)``.
"""

from typing import TYPE_CHECKING, Any

from halftone.artifact.registration import register

if TYPE_CHECKING:
    from halftone.api import HalftoneConfig, Result, quantize
    from halftone.artifact.watch import TrajectoryWarning
    from halftone.engines import set_engine
    from halftone.models.adapters import fuse_lora

__version__ = "0.1.0"
__all__ = ["HalftoneConfig", "Result", "TrajectoryWarning", "__version__", "fuse_lora", "quantize", "set_engine"]

register()


def __getattr__(name: str) -> Any:
    # On first use: `halftone --help` and `import halftone` need not wait for torch.
    if name in ("quantize", "Result", "HalftoneConfig"):
        from halftone import api

        return getattr(api, name)
    if name == "TrajectoryWarning":
        from halftone.artifact.watch import TrajectoryWarning

        return TrajectoryWarning
    if name == "fuse_lora":
        from halftone.models.adapters import fuse_lora

        return fuse_lora
    if name == "set_engine":
        from halftone.engines import set_engine

        return set_engine
    raise AttributeError(f"module 'halftone' has no attribute {name!r}")
