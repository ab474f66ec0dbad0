"""Which engines there are, whether they run here, and giving one to a network."""

from functools import cache
from typing import Any

from torch import nn

from halftone.engines.contract import AbstractNetworkEngine, AbstractSession
from halftone.foundation.errors import ConfigError, KernelError
from halftone.foundation.registry import make, names
from halftone.kernels import machine
from halftone.kernels.select import AUTO
from halftone.kernels.select import check_engine as check_kernels
from halftone.kernels.select import engines as kernel_engines
from halftone.nn.layers import quantized_layers
from halftone.nn.running import set_engine as set_kernels

_LIBRARY = "halftone.engines.library"
_RUNS = "_halftone_engine"  # the attribute that tells a network's engine, where one runs the whole of it


@cache
def network_engines() -> tuple[str, ...]:
    """Return the names of the engines that run whole networks, plug-ins included."""
    return tuple(names(_LIBRARY))


def engines() -> list[str]:
    """Return the names of all engines: those that kernels belong to, and those that run whole networks."""
    return [*kernel_engines(), *network_engines()]


def unavailable(engine: str, weight_only: bool = False) -> str | None:
    """Return why ``engine`` does not run on this machine, or None."""
    if engine in network_engines():
        return _made(engine).refusal()
    return machine.unavailable(engine, weight_only)


def require(engine: str, weight_only: bool = False) -> None:
    """Check that ``engine`` computes on this machine what it is for.

    Args:
        weight_only: whether float arithmetic on unpacked weights is enough, as for a model without quantized inputs.

    Raises:
        ConfigError: no such engine.
        KernelError: it does not run here; the message says why.
    """
    if engine not in network_engines():
        check_kernels(engine, engines())
        machine.require(engine, weight_only)
        return
    reason = unavailable(engine)
    if reason is not None:
        raise KernelError(f"engine '{engine}'", "a machine it runs on", reason, "Use --engine torch or simulate.")


def set_engine(network: nn.Module, engine: str, **options: Any) -> None:
    """Let ``network`` run on ``engine``: ``auto``, ``simulate``, ``torch`` (each layer by itself), or one that takes all of it.

    >>> halftone.set_engine(pipe.unet, "openvino", precision="f32")  # doctest: +SKIP

    Args:
        network: holds quantized layers, such as ``pipe.unet``.
        options: of an engine for whole networks; see :mod:`halftone.engines.library`.

    Raises:
        ConfigError: no such engine or option, or the network holds no quantized layer.
        KernelError: the engine does not run on this machine.
    """
    if engine not in network_engines():
        check_kernels(engine, engines())
        if options:
            raise ConfigError(f"engine '{engine}'", "no options", ", ".join(sorted(options)))
        give(network, engine, None)
        set_kernels(network, engine)
        return
    chosen = _made(engine, **options)
    require(engine)
    if next(quantized_layers(network), None) is None:
        got = f"a float {type(network).__name__}"
        raise ConfigError(
            f"engine '{engine}'", "a network with quantized layers", got, "Give it pipe.unet or the like."
        )
    if hasattr(network, "decode") and isinstance(getattr(network, "decoder", None), nn.Module):
        # Pipelines call its methods, never itself: an engine would be set and not run.
        got, fix = f"a {type(network).__name__}", "Give it pipe.vae.decoder."
        raise ConfigError(f"engine '{engine}'", "a network that pipelines call", got, fix)
    set_kernels(network, AUTO)  # what layers have prepared for themselves takes memory, and is not asked for now
    give(network, engine, chosen.session(network))


def running(network: nn.Module) -> str | None:
    """Return the name of the engine that runs the whole of ``network``, None where its layers run by themselves."""
    return getattr(network, _RUNS, None)


def session(network: nn.Module) -> AbstractSession | None:
    """Return what runs the whole of ``network``, None where its layers run by themselves."""
    return network.__dict__["forward"] if running(network) is not None else None


def give(network: nn.Module, engine: str, runs: AbstractSession | None) -> None:
    """Let ``runs``, of ``engine``, run ``network``; None: its layers run by themselves.

    Raises:
        ConfigError: somebody else has replaced the network's ``forward``.
    """
    if running(network) is not None:
        del network.forward
        delattr(network, _RUNS)
    if runs is None:
        return
    if "forward" in network.__dict__:
        expected, got = "a network whose forward nobody has replaced", "another wrapper of it"
        raise ConfigError(type(network).__name__, expected, got)
    network.forward = runs
    setattr(network, _RUNS, engine)


def _made(engine: str, **options: Any) -> AbstractNetworkEngine:
    engine_: AbstractNetworkEngine = make(_LIBRARY, {"name": engine, **options}, f"engine '{engine}'")
    return engine_
