"""Policy: ordered rules from roles to specs, and the plan they make for one model."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from halftone.foundation.errors import ConfigError, MatchError
from halftone.models.roles import Architecture
from halftone.nn import Scheme
from halftone.nn.attention import OPERANDS, can_hold_operands
from halftone.quant import QuantSpec


@dataclass(frozen=True)
class Rule:
    """What happens to the layers whose role matches the glob ``roles``. Later rules override the fields they name.

    Attributes:
        weight, input: the specs; an absent one is left as earlier rules said.
        keep: stay float altogether (or, false: take back an earlier keep).
        float_input: the weights are quantized, the input is not.
        operands: specs of attention operands by name (``q``, ``k``, ``v``, ``probs``); matched against the role ``attention``.
        optional: allowed to match nothing. Otherwise that is an error.
    """

    roles: str
    weight: QuantSpec | None = None
    input: QuantSpec | None = None
    keep: bool | None = None
    float_input: bool | None = None
    operands: dict[str, QuantSpec] | None = None
    optional: bool = False


@dataclass(frozen=True)
class Planned:
    """The plan of one layer; ``scheme`` None means it is kept float."""

    path: str
    role: str
    inferred: bool
    scheme: Scheme | None


@dataclass(frozen=True)
class Plan:
    """The plan of a model: layers by path, and the operand specs of each attention by path."""

    layers: dict[str, Planned]
    operands: dict[str, dict[str, QuantSpec]] = field(default_factory=dict)

    def quantized(self) -> dict[str, Scheme]:
        """Return the schemes of the layers that are to be quantized."""
        return {path: p.scheme for path, p in self.layers.items() if p.scheme is not None}


def _scheme(role: str, rules: tuple[Rule, ...]) -> Scheme | None:
    weight = inputs = None
    keep = float_input = False
    for rule in rules:
        if fnmatchcase(role, rule.roles):
            weight, inputs = rule.weight or weight, rule.input or inputs
            keep = keep if rule.keep is None else rule.keep
            float_input = float_input if rule.float_input is None else rule.float_input
    if keep or weight is None:
        return None
    return Scheme(weight, None if float_input else inputs)


def make_plan(model: nn.Module, found: Architecture, rules: tuple[Rule, ...]) -> Plan:
    """Return what ``rules`` make of the model's roles.

    Raises:
        MatchError: a rule that matches no role, unless it is optional.
        ConfigError: a rule with unknown operands, or a policy that quantizes nothing.
    """
    attentions = [path for path, module in model.named_modules() if can_hold_operands(module)]
    names = {role.name for role in found.roles.values()}
    matchable = names | ({"attention"} if attentions else set())
    for rule in rules:
        unknown = set(rule.operands or ()) - set(OPERANDS)
        if unknown:
            raise ConfigError(
                f"policy rule '{rule.roles}'.operands", "any of " + ", ".join(OPERANDS), ", ".join(unknown)
            )
        hit = any(fnmatchcase(name, rule.roles) for name in matchable)
        if not hit and not rule.optional:
            raise MatchError(
                f"policy rule '{rule.roles}'",
                "a role of this model",
                "no match",
                f"Its roles: {', '.join(sorted(matchable))}.",
            )
    layers = {p: Planned(p, r.name, r.inferred, _scheme(r.name, rules)) for p, r in found.roles.items()}
    if not any(planned.scheme for planned in layers.values()):
        raise ConfigError("policy", "at least one quantized layer", "none", "Give a rule a weight spec.")
    specs: dict[str, QuantSpec] = {}
    for rule in rules:
        if rule.operands and fnmatchcase("attention", rule.roles):
            specs.update(rule.operands)
    return Plan(layers, {path: dict(specs) for path in attentions if specs})
