"""Engines: what runs a quantized network. Kernels run it layer by layer; the engines of ``library/`` take the whole of it."""

from halftone.engines.contract import AbstractNetworkEngine, AbstractSession
from halftone.engines.select import engines, require, running, session, set_engine, unavailable

__all__ = [
    "AbstractNetworkEngine",
    "AbstractSession",
    "engines",
    "require",
    "running",
    "session",
    "set_engine",
    "unavailable",
]
