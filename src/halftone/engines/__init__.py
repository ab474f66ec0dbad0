"""Engines: what runs a quantized network. Kernels run it layer by layer; the engines of ``library/`` take the whole of it."""

from halftone.engines.contract import AbstractNetworkEngine
from halftone.engines.select import engines, require, running, set_engine, unavailable

__all__ = ["AbstractNetworkEngine", "engines", "require", "running", "set_engine", "unavailable"]
