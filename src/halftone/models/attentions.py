"""The attentions of a denoiser: their roles, and which of them can hold quantized operands."""

from dataclasses import dataclass

from torch import nn

from halftone.models.roles import Architecture
from halftone.nn.attention import can_hold_operands

ANY = "attention"  # every attention answers to it, beside its own role


@dataclass(frozen=True)
class FoundAttention:
    """One attention module.

    Attributes:
        kind: its class.
        role: ``attention.self`` or ``attention.cross``, as the roles of its layers say; ``attention`` where they do not.
        holds: whether its ``q``, ``k``, ``v`` and ``probs`` can be quantized.
    """

    path: str
    kind: str
    role: str
    holds: bool


def attentions(model: nn.Module, found: Architecture) -> list[FoundAttention]:
    """Return the attentions of ``model`` in registration order: what has projections of that role, or is called so."""
    by_layer: dict[str, str] = {}
    for path, role in found.roles.items():
        owner, _, part = role.name.rpartition(".")
        if part in ("q", "k", "v") and owner.split(".")[0] == ANY:
            by_layer[path.rpartition(".")[0]] = owner
    listed = []
    for path, module in model.named_modules():
        kind, holds = type(module).__name__, can_hold_operands(module)
        if holds or path in by_layer or ("Attention" in kind and hasattr(module, "processor")):
            listed.append(FoundAttention(path, kind, by_layer.get(path, ANY), holds))
    return listed
