"""Choose the kernel of a layer, and remember why the others were refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from halftone.foundation.errors import ConfigError, suggest
from halftone.foundation.registry import find, names
from halftone.kernels.attention_contract import AbstractAttentionKernel, Attention
from halftone.kernels.contract import AbstractKernel, Operands, Operation

_LIBRARY = "halftone.kernels.library"
_ATTENTIONS = "halftone.kernels.attentions"
AUTO = "auto"
_Kernel = TypeVar("_Kernel", AbstractKernel, AbstractAttentionKernel)


@cache
def library() -> dict[str, AbstractKernel]:
    """Return every kernel by name, plug-ins included."""
    return {name: find(_LIBRARY, name)() for name in names(_LIBRARY)}


@cache
def attention_library() -> dict[str, AbstractAttentionKernel]:
    """Return every kernel of attention by name, plug-ins included."""
    return {name: find(_ATTENTIONS, name)() for name in names(_ATTENTIONS)}


def engines() -> list[str]:
    """Return the names of all engines: ``auto`` and those the kernels belong to."""
    return [AUTO, *sorted({kernel.engine for kernel in library().values()})]


def check_engine(engine: str, known: Sequence[str] = ()) -> None:
    """Raise a ConfigError, with a suggestion, unless kernels belong to an engine of that name.

    Args:
        known: what to suggest; by default the engines of kernels.
    """
    if engine not in engines():
        known = known or engines()
        expected = "one of " + ", ".join(known)
        fix = suggest(engine, known)
        fix = fix if fix.startswith("Did") else "It is not built: choose one of these, or add a kernel."
        raise ConfigError("--engine (engine)", expected, f"'{engine}'", fix)


@dataclass(frozen=True)
class Choice:
    """The kernel that runs a layer.

    Attributes:
        refused: reason by kernel name, for kernels of the engine that would have been preferred.
    """

    name: str
    kernel: AbstractKernel
    refused: dict[str, str]


@dataclass(frozen=True)
class AttentionChoice:
    """The kernel that runs an attention with quantized operands; ``refused`` as in :class:`Choice`."""

    name: str
    kernel: AbstractAttentionKernel
    refused: dict[str, str]


def choose(engine: str, operation: Operation, operands: Operands) -> Choice:
    """Return the preferred kernel of ``engine`` that takes this layer.

    ``auto`` considers all engines. The reference kernel is the last resort of each engine; then ``kernel.arithmetic`` is
    ``simulated`` and reports say so.

    Raises:
        ConfigError: no such engine.
    """
    check_engine(engine)
    refused: dict[str, str] = {}
    for name, kernel in _of_engine(engine, library()):
        reason = kernel.refusal(operation, operands)
        if reason is None:
            return Choice(name, kernel, refused)
        refused[name] = reason
    raise AssertionError("the reference kernel refuses nothing")


def choose_attention(engine: str, attention: Attention) -> AttentionChoice:
    """Return the preferred kernel of ``engine`` that takes this attention, as :func:`choose` does for layers.

    Raises:
        ConfigError: no such engine.
    """
    check_engine(engine)
    refused: dict[str, str] = {}
    for name, kernel in _of_engine(engine, attention_library()):
        reason = kernel.refusal(attention)
        if reason is None:
            return AttentionChoice(name, kernel, refused)
        refused[name] = reason
    raise AssertionError("the reference kernel refuses nothing")


def _of_engine(engine: str, known: dict[str, _Kernel]) -> list[tuple[str, _Kernel]]:
    """Return the kernels that ``engine`` may use by preference; the reference is the last resort of each."""
    ordered = sorted(known.items(), key=lambda item: -item[1].preference)
    return [
        (name, each)
        for name, each in ordered
        if name == "reference" or engine in (each.engine, AUTO) or each.engine == AUTO
    ]
