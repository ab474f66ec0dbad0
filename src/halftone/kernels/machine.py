"""What this machine can run, and why not the rest."""

import platform
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from halftone.formats import Affine, parse
from halftone.foundation.allocator import keeps_freed_memory
from halftone.foundation.errors import KernelError
from halftone.kernels.contract import AbstractKernel, Operands, Operation
from halftone.kernels.native import product
from halftone.kernels.native.attention import why_none
from halftone.kernels.native.build import one_thread, why_no_loops
from halftone.kernels.select import AUTO, check_engine, engines, library

_FLAGS = {
    "avx2": "_is_avx2_supported",
    "avx512": "_is_avx512_supported",
    "vnni": "_is_vnni_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx": "_is_amx_tile_supported",
}


def machine() -> dict[str, Any]:
    """Return what a time depends on, JSON-safe; what cards and tables of results tell of the machine."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "capability": _capability(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "keeps_freed_memory": keeps_freed_memory(),
        "native_loops": why_no_loops() is None,
    }


def machine_report() -> dict:
    """Return what ``halftone doctor`` shows, JSON-safe.

    ``torch``, ``processor``, ``threads``, ``cpu_capability``, ``flags`` (name -> bool, None where this PyTorch cannot
    tell), ``mkldnn``, ``cuda`` (device names), ``engines`` (name -> None when it can run, else the reason) and
    ``native_loops`` (None, or why there are none and PyTorch's operators do their work), ``native_on_one_thread`` (whether the
    compiler had no OpenMP), ``native_product`` (the same of integer
    products), ``native_attention`` (of attention on ``codes`` and on ``bfloat16``).
    """
    return {
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": _capability(),
        "flags": {name: _flag(function) for name, function in _FLAGS.items()},
        "mkldnn": torch.backends.mkldnn.is_available(),
        "cuda": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "engines": {engine: unavailable(engine) for engine in engines() if engine != AUTO},
        "native_loops": why_no_loops(),
        "native_on_one_thread": one_thread(),
        "native_product": product.why_none(),
        "native_attention": {"codes": why_none("codes"), "bfloat16": why_none("bfloat16")},
    }


def require(engine: str, weight_only: bool = False) -> None:
    """Check that ``engine`` computes on this machine what it is for.

    Args:
        weight_only: whether float arithmetic on unpacked weights is enough, as for a model without quantized inputs.

    Raises:
        ConfigError: no such engine.
        KernelError: it has kernels, but none runs here; the message says why.
    """
    check_engine(engine)
    reason = unavailable(engine, weight_only) if engine != AUTO else None
    if reason is not None:
        raise KernelError(f"engine '{engine}'", "a machine it runs on", reason, "Use --engine simulate.")


def unavailable(engine: str, weight_only: bool = False) -> str | None:
    """Return why no kernel of ``engine`` takes even a plain small layer on any device of this machine, or None."""
    reasons: list[str] = []
    kernels = {name: kernel for name, kernel in library().items() if kernel.engine == engine}
    for device in _devices():
        refused = _refused(kernels, device, weight_only)
        if refused is None:
            return None
        reasons += [f"{name} on {device}: {reason}" for name, reason in refused.items()]
    return "; ".join(reasons) or f"no kernel belongs to engine '{engine}'"


def _refused(kernels: dict[str, AbstractKernel], device: str, weight_only: bool) -> dict[str, str] | None:
    """Return why each kernel refuses a plain small layer on ``device``, the preferred first; None if one takes it."""
    reasons: dict[str, str] = {}
    for name, kernel in sorted(kernels.items(), key=lambda item: -item[1].preference):
        first, *others = (kernel.refusal(*probe) for probe in _probes(device, weight_only))
        if first is None or None in others:
            return None
        reasons[name] = first
    return reasons


class SimulatedWarning(UserWarning):
    """A quantized model runs in float arithmetic, because no integer kernel runs on its device."""


@cache
def tell_simulated(device: str) -> None:
    """Warn, once for each kind of ``device``, unless an integer kernel takes a plain layer there.

    For the choice that nobody asked for: ``auto`` falls to the definition where there is nothing else. (A single odd layer that
    only the definition serves is shown by ``halftone inspect``.)
    """
    integer = {name: kernel for name, kernel in library().items() if kernel.arithmetic == "integer"}
    refused = _refused(integer, device, weight_only=False)
    if refused is None:
        return
    why = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "there are none"
    text = f"no integer kernel runs on {device} here ({why}): the model is simulated in float, right but neither fast nor small"
    warnings.warn(f"{text}. `halftone doctor` tells more.", SimulatedWarning, stacklevel=2)


def processor() -> str:
    """Return the name of the CPU."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _devices() -> list[str]:
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def _probes(device: str, weight_only: bool) -> Iterator[tuple[Operation, Operands]]:
    """Yield a 4-bit linear and convolution that any kernel worth its name takes."""
    weight, data = parse("uint4"), None if weight_only else parse("uint8")
    one, middle = torch.ones(1, 64, device=device), torch.full((1, 64), 8.0, device=device)
    affine = Affine(one, middle)
    inputs = None if weight_only else Affine(one[0, :1], middle[0, :1])
    codes = torch.full((64, 64), 7, dtype=torch.uint8, device=device)
    yield Operation("linear", 64, 64, (64,), weight, data), Operands(codes, affine, inputs, None)
    codes = codes.view(64, 64, 1, 1).expand(-1, -1, 3, 3).contiguous()
    operation = Operation("conv2d", 64, 64, (64,), weight, data, (3, 3), padding=(1, 1))
    yield operation, Operands(codes, affine, inputs, None)


def _capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def _flag(function: str) -> bool | None:
    # Private to torch, so it may move.
    ask = getattr(torch.cpu, function, None)
    return None if ask is None else bool(ask())
