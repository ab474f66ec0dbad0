"""Making diffusers and transformers know the name ``halftone``, without importing them before anyone needs them."""

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAME = "halftone"  # the schema's METHOD, which would import torch


def register() -> None:
    """Enter Halftone's config and quantizer into both libraries' tables, now or as soon as they are imported.

    Importing them takes seconds, which ``halftone --help`` need not pay; so where one is not imported yet, its tables are
    completed right after they come into being. Calling this again changes nothing.
    """
    for name, complete in _COMPLETED.items():
        if name in sys.modules:
            complete(sys.modules[name])
        elif not any(isinstance(finder, _AfterImport) and finder.name == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _AfterImport(name))


class _IsConfig(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        # PipelineQuantizationConfig(quant_backend="halftone", quant_kwargs={"recipe": ...}) makes a config of its table's class.
        return sys.modules["halftone"].HalftoneConfig(*args, **kwargs)

    def __instancecheck__(cls, value: object) -> bool:
        loader = sys.modules.get("halftone.artifact.diffusers_loader")
        return loader is not None and isinstance(value, loader.HalftoneConfig)


class _Config(metaclass=_IsConfig):
    """Stands for the config in the tables: its class needs diffusers, which may be half imported just now."""

    @staticmethod
    def from_dict(data: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        from halftone.artifact.diffusers_loader import HalftoneConfig

        return HalftoneConfig.from_dict(data, *args, **kwargs)


def _of_diffusers(*args: Any, **kwargs: Any) -> Any:
    from halftone.artifact.on_load import quantizer

    return quantizer(*args, **kwargs)


def _of_transformers(*args: Any, **kwargs: Any) -> Any:
    from halftone.artifact.on_load import RoundOnLoad
    from halftone.artifact.transformers_loader import TransformersQuantizer

    config = kwargs.get("quantization_config", args[0] if args else None)
    if not isinstance(config, RoundOnLoad):
        return TransformersQuantizer(*args, **kwargs)
    from halftone.artifact.transformers_on_load import RoundingTextQuantizer

    return RoundingTextQuantizer(*args, **kwargs)


# Where each library keeps its tables, and what makes our quantizer for it.
_TABLES: dict[str, Callable[..., Any]] = {
    "diffusers.quantizers.auto": _of_diffusers,
    "transformers.quantizers.auto": _of_transformers,
}


def _enter(tables: ModuleType) -> None:
    tables.AUTO_QUANTIZATION_CONFIG_MAPPING[_NAME] = _Config
    tables.AUTO_QUANTIZER_MAPPING[_NAME] = _TABLES[tables.__name__]


def _guard_fusing(loaders: ModuleType) -> None:
    """Let ``pipe.fuse_lora()`` refuse a quantized text encoder, whose packed codes PEFT would add to without failing.

    Denoisers have a ``fuse_lora`` of their own, which is guarded on each (``artifact/fusing.py``); for text encoders diffusers
    has this function.
    """
    fuse = getattr(loaders, "fuse_text_encoder_lora", None)
    if fuse is None or hasattr(fuse, "__wrapped__"):
        return

    @functools.wraps(fuse)
    def guarded(text_encoder: Any, *args: Any, **kwargs: Any) -> Any:
        from halftone.artifact.fusing import refuse_codes

        refuse_codes(text_encoder)
        return fuse(text_encoder, *args, **kwargs)

    loaders.fuse_text_encoder_lora = guarded  # type: ignore[attr-defined]


# What is done to a library's module once it is there.
_COMPLETED: dict[str, Callable[[ModuleType], None]] = {
    **dict.fromkeys(_TABLES, _enter),
    "diffusers.loaders.lora_base": _guard_fusing,
}


class _AfterImport(MetaPathFinder):
    """Finds nothing itself; lets the ordinary finders find a library's module, and completes it once it has run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_enter(module: ModuleType) -> None:
                run(module)
                _COMPLETED[name](module)

            loader: Any = spec.loader
            loader.exec_module = run_and_enter
        return spec
