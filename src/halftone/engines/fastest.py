"""Which engine is the fastest on this machine for this network: measured once, then remembered."""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn

from halftone.engines.contract import AbstractSession
from halftone.engines.select import give, network_engines, session, set_engine, unavailable
from halftone.foundation.errors import KernelError
from halftone.foundation.files import private_cache, text_digest, write_atomically
from halftone.kernels.machine import machine
from halftone.kernels.select import AUTO
from halftone.nn.attention import AttentionOperands
from halftone.nn.layers import quantized_layers

_ROUNDS = 5
_PACKAGES = ("halftone", "torch", "openvino")
# By which a user holds engines to a part of the processor.
_MASKS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "HALFTONE_NATIVE")


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        engine: the fastest; ``auto`` stands for each layer's own kernel.
        seconds: of a call, by engine, medians of calls that took turns.
        refused: why an engine did not take part, by name.
        remembered: whether an earlier process measured it.
    """

    engine: str
    seconds: dict[str, float]
    refused: dict[str, str]
    remembered: bool = False

    @property
    def sentence(self) -> str:
        """What to tell a reader."""
        times = ", ".join(f"{_shown(name)} {1e3 * seconds:.1f} ms" for name, seconds in self.seconds.items())
        when = "measured here before" if self.remembered else "measured now"
        refused = "".join(f"; {name}: {reason}" for name, reason in self.refused.items())
        return f"engine auto takes {_shown(self.engine)} ({when}, a call: {times}{refused})"


def fastest(network: nn.Module, make_inputs: Callable[[], tuple[tuple, dict[str, Any]]]) -> Measured | None:
    """Return which engine runs ``network`` fastest, None where no engine for whole networks runs on this machine.

    Calls of all engines take turns, so that a drifting machine does not decide. The network is left to its layers' own kernels.

    Args:
        make_inputs: returns arguments of a call.
    """
    candidates = [AUTO, *(engine for engine in network_engines() if unavailable(engine) is None)]
    if len(candidates) == 1 or next(network.parameters()).device.type != "cpu":
        return None
    args, kwargs = make_inputs()
    file = private_cache("engines")
    record = None if file is None else file / f"{text_digest(_circumstances(network, args, kwargs))}.json"
    if record is not None and record.is_file():
        known = _read(record.read_text(encoding="utf-8"))
        if known is not None:
            return known
    found = _measure(network, candidates, lambda: network(*args, **kwargs))
    if record is not None:
        write_atomically(record, json.dumps(asdict(found)))
    return found


def _measure(network: nn.Module, candidates: list[str], call: Callable[[], Any]) -> Measured:
    seconds: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    runs: dict[str, AbstractSession | None] = {}
    try:
        with torch.inference_mode():
            for engine in candidates:
                set_engine(network, engine)
                try:
                    call()
                except KernelError as error:
                    refused[engine] = str(error)
                    continue
                seconds[engine] = []
                runs[engine] = session(network)
            for number in range(1 + _ROUNDS):
                for engine, times in seconds.items():
                    give(network, engine, runs[engine])  # what it has compiled stays
                    began = time.perf_counter()
                    call()
                    # In the first round layers prepare again what another engine's turn has thrown away.
                    if number:
                        times.append(time.perf_counter() - began)
    finally:
        set_engine(network, AUTO)
    medians = {engine: statistics.median(times) for engine, times in seconds.items()}
    return Measured(min(medians, key=lambda engine: medians[engine]), medians, refused)


def _circumstances(network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> str:
    """Return what a time depends on: machine and masks, versions, the layers' shapes and formats and how they hold codes,
    attention's operands, the call's shapes and dtypes."""
    layers = [(path, layer.weight_shape, str(layer.scheme), layer.weights) for path, layer in quantized_layers(network)]
    operands = [str(each.site_specs) for each in network.modules() if isinstance(each, AttentionOperands)]
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    shapes = [(list(value.shape), str(value.dtype)) for value in given]
    masks = [os.environ.get(name) for name in _MASKS]
    versions = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return json.dumps([machine(), masks, versions, type(network).__name__, layers, operands, shapes])


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _read(text: str) -> Measured | None:
    """Return a remembered measurement; None if the file is damaged or of an engine that is no more."""
    try:
        found = Measured(**{**json.loads(text), "remembered": True})
    except (ValueError, TypeError):
        return None
    return found if found.engine in (AUTO, *network_engines()) else None


def _shown(engine: str) -> str:
    return "the layers' own kernels" if engine == AUTO else engine
