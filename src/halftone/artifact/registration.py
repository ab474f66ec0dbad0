"""Making diffusers know the name ``halftone``, without importing diffusers before anyone needs it."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TABLES = "diffusers.quantizers.auto"


def register() -> None:
    """Enter Halftone's config and quantizer into diffusers' tables, now or as soon as diffusers is imported.

    Importing diffusers takes seconds, which ``halftone --help`` need not pay; so where it is not imported yet, its
    tables are completed right after they come into being. Calling this again changes nothing.
    """
    if _TABLES in sys.modules:
        _enter(sys.modules[_TABLES])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _enter(tables: ModuleType) -> None:
    from halftone.artifact.diffusers_loader import HalftoneConfig, HalftoneMethod
    from halftone.artifact.on_load import quantizer

    tables.AUTO_QUANTIZATION_CONFIG_MAPPING[HalftoneMethod.HALFTONE.value] = HalftoneConfig
    tables.AUTO_QUANTIZER_MAPPING[HalftoneMethod.HALFTONE.value] = quantizer


class _AfterImport(MetaPathFinder):
    """Finds nothing itself; lets the ordinary finders find diffusers' tables, and enters ours once they have run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_enter(module: ModuleType) -> None:
                run(module)
                _enter(module)

            loader: Any = spec.loader
            loader.exec_module = run_and_enter
        return spec
