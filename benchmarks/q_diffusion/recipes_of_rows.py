"""What the rows' recipes say: the bits of the first and the last layer, and which recipes have changed since."""

from typing import Any

from benchmarks.q_diffusion.results import Result, Section
from benchmarks.records import recipe_digest
from halftone.foundation.build import build
from halftone.foundation.errors import HalftoneError
from halftone.models.policy import Rule, scheme_of
from halftone.recipes import load

_EDGES = ("conv_in", "conv_out")
_BODY = ""  # no role of its own: what the rules for all layers say
_FLOAT = 32


def stale(sections: dict[str, Section]) -> list[str]:
    """Return the rows, ``section/name``, whose recipe differs from the one that today's library has by that name."""
    return [
        f"{section}/{row.name}"
        for section, rows in sections.items()
        for row in rows.values()
        if row.data.get("recipe") and not _current(row)
    ]


def _current(row: Result) -> bool:
    recipe = row.data["recipe"]
    try:
        return recipe_digest(load(recipe["name"], row.data["budget"], recipe["overrides"])) == recipe["sha256"]
    except HalftoneError:
        return False


def edges_sentence(rows: list[Result]) -> str:
    """Return what the first and the last layer hold where that holds for all quantized rows, else nothing."""
    policies = [row.data["recipe"]["resolved"]["policy"] for row in rows if row.data.get("recipe")]
    try:
        found = [(_bits(policy, _BODY), [_bits(policy, role) for role in _EDGES]) for policy in policies]
    except HalftoneError:  # written by a version with other rules
        return ""
    weights = {weight for _, edges in found for weight, _ in edges}
    if len(weights) != 1 or all(edge[0] == body[0] for body, edges in found for edge in edges):
        return ""
    inputs = {bits for body, edges in found for _, bits in edges if body[1] != _FLOAT}
    text = f"In every quantized row the first and the last layer have {weights.pop()}-bit weights"
    if len(inputs) == 1:
        text += f" and, where activations are quantized, {inputs.pop()}-bit inputs"
    return text + "."


def _bits(policy: list[dict[str, Any]], role: str) -> tuple[int, int]:
    """Return the bits of weights and inputs that a resolved policy gives to a role."""
    scheme = scheme_of(role, [build(Rule, each) for each in policy])
    if scheme is None:
        return _FLOAT, _FLOAT
    return scheme.weight.bits, scheme.input.bits if scheme.input else _FLOAT
