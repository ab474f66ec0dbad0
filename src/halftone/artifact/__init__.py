"""A quantized denoiser in files: schema, saving and loading through diffusers, checks. Specified in docs/artifact.md.

Names are imported on first use: ``register`` is called by ``import halftone``, which must not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halftone.artifact.accounting import component_sizes, sizes
    from halftone.artifact.attachment import attach, described
    from halftone.artifact.diffusers_loader import HalftoneConfig
    from halftone.artifact.folder import check_folder
    from halftone.artifact.outline import load_outline
    from halftone.artifact.pipeline import load_pipeline, save_pipeline
    from halftone.artifact.registration import register
    from halftone.artifact.schema import Description

_ROOMS = {
    "HalftoneConfig": "diffusers_loader",
    "attach": "attachment",
    "described": "attachment",
    "check_folder": "folder",
    "load_outline": "outline",
    "load_pipeline": "pipeline",
    "save_pipeline": "pipeline",
    "register": "registration",
    "Description": "schema",
    "component_sizes": "accounting",
    "sizes": "accounting",
}

__all__ = [
    "Description",
    "HalftoneConfig",
    "attach",
    "check_folder",
    "component_sizes",
    "described",
    "load_outline",
    "load_pipeline",
    "register",
    "save_pipeline",
    "sizes",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
