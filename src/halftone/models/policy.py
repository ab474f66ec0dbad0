"""Policy: ordered rules from roles to specs, and the plan they make for one model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from halftone.foundation.errors import ConfigError, MatchError
from halftone.foundation.wording import some
from halftone.models.attentions import ANY, FoundAttention, attentions
from halftone.models.roles import Architecture
from halftone.nn import Scheme
from halftone.nn.attention import OPERANDS
from halftone.quant import QuantSpec


@dataclass(frozen=True)
class Rule:
    """What happens to the layers whose role matches ``roles``. Later rules override the fields they name.

    Attributes:
        roles: a glob of roles, or several of which one must match.
        weight, input: the specs; an absent one is left as earlier rules said.
        keep: stay float altogether (or, false: take back an earlier keep).
        float_input: the weights are quantized, the input is not.
        operands: specs of attention operands by name (``q``, ``k``, ``v``, ``probs``); matched against the roles ``attention``,
            ``attention.self`` and ``attention.cross``. An attention that cannot hold them is noted in the plan where the rule is
            for ``*``, and an error where the rule reaches no other.
        optional: allowed to match nothing. Otherwise that is an error.

    Raises:
        ConfigError: no glob, or nothing said about the roles.
    """

    roles: str | tuple[str, ...]
    weight: QuantSpec | None = None
    input: QuantSpec | None = None
    keep: bool | None = None
    float_input: bool | None = None
    operands: dict[str, QuantSpec] | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if not self.globs:
            raise ConfigError("policy rule: roles", "a glob or a list of globs", "an empty list", 'All roles are "*".')
        if not self.about_layers and not self.operands:
            where, fix = f"policy rule '{', '.join(self.globs)}'", "Say what happens to these layers, or drop the rule."
            raise ConfigError(where, "weight, input, keep, float_input or operands", "roles alone", fix)

    @property
    def globs(self) -> tuple[str, ...]:
        return (self.roles,) if isinstance(self.roles, str) else self.roles

    @property
    def about_layers(self) -> bool:
        """Whether the rule says anything of layers; operands belong to attentions."""
        return (self.weight, self.input, self.keep, self.float_input) != (None,) * 4

    @property
    def says_more_than_inputs(self) -> bool:
        """Whether anything is left of the rule without its input and its operands."""
        return (self.weight, self.keep, self.float_input) != (None,) * 3

    def matches(self, role: str) -> bool:
        return any(fnmatchcase(role, glob) for glob in self.globs)


@dataclass(frozen=True)
class Planned:
    """The plan of one layer; ``scheme`` None means it is kept float."""

    path: str
    role: str
    inferred: bool
    scheme: Scheme | None


@dataclass(frozen=True)
class Plan:
    """The plan of a model.

    Attributes:
        layers: by path.
        operands: specs of each attention's operands, by the attention's path.
        notes: what the policy asks for and the model cannot have, in sentences.
    """

    layers: dict[str, Planned]
    operands: dict[str, dict[str, QuantSpec]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def quantized(self) -> dict[str, Scheme]:
        """Return the schemes of the layers that are to be quantized."""
        return {path: p.scheme for path, p in self.layers.items() if p.scheme is not None}

    def of_roles(self, where: str, globs: tuple[str, ...]) -> frozenset[str]:
        """Return the paths of the layers whose role matches one of ``globs``; none of an empty tuple.

        Raises:
            MatchError: at ``where``, a glob that matches no role.
        """
        roles = {planned.role for planned in self.layers.values()}
        for glob in globs:
            if not any(fnmatchcase(role, glob) for role in roles):
                fix = f"Its roles: {', '.join(sorted(roles))}."
                raise MatchError(where, "a role of this model", f"no match for '{glob}'", fix)
        matching = (path for path, p in self.layers.items() if any(fnmatchcase(p.role, glob) for glob in globs))
        return frozenset(matching)


def scheme_of(role: str, rules: Sequence[Rule]) -> Scheme | None:
    """Return what ``rules`` make of a layer of ``role``, later rules over earlier ones; None where it stays float."""
    weight = inputs = None
    keep = float_input = False
    for rule in rules:
        if rule.matches(role):
            weight, inputs = rule.weight or weight, rule.input or inputs
            keep = keep if rule.keep is None else rule.keep
            float_input = float_input if rule.float_input is None else rule.float_input
    if keep or weight is None:
        return None
    return Scheme(weight, None if float_input else inputs)


def why_float(role: str, rules: Sequence[Rule]) -> str:
    """Return why :func:`scheme_of` gives ``role`` no scheme, in words; empty where it gives one."""
    if scheme_of(role, rules) is not None:
        return ""
    keeping = [rule for rule in rules if rule.matches(role) and rule.keep is not None]
    if keeping and keeping[-1].keep:
        return f"the rule for '{', '.join(keeping[-1].globs)}' keeps it"
    return "no rule gives its role a weight format"


def make_plan(model: nn.Module, found: Architecture, rules: tuple[Rule, ...]) -> Plan:
    """Return what ``rules`` make of the model's roles.

    Raises:
        MatchError: a glob that matches no role, or operands that no attention can hold, unless the rule is optional.
        ConfigError: a rule with unknown operands, or a policy that quantizes nothing.
    """
    names = {role.name for role in found.roles.values()}
    known = attentions(model, found)
    for rule in rules:
        _check(rule, names, known)
    layers = {p: Planned(p, r.name, r.inferred, scheme_of(r.name, rules)) for p, r in found.roles.items()}
    if not any(planned.scheme for planned in layers.values()):
        raise ConfigError("policy", "at least one quantized layer", "none", "Give a rule a weight spec.")
    specs: dict[str, dict[str, QuantSpec]] = {}
    unable: dict[str, list[str]] = {}
    for each in known:
        wanted = {site: spec for rule in rules if _reaches(rule, each) for site, spec in (rule.operands or {}).items()}
        if wanted and each.holds:
            specs[each.path] = wanted
        elif wanted:
            unable.setdefault(each.kind, []).append(each.path)
    return Plan(layers, specs, tuple(_note(kind, paths) for kind, paths in unable.items()))


def _reaches(rule: Rule, attention: FoundAttention) -> bool:
    return rule.operands is not None and (rule.matches(ANY) or rule.matches(attention.role))


def _check(rule: Rule, names: set[str], known: list[FoundAttention]) -> None:
    """Refuse a rule that would do nothing, wholly or in a part that it names."""
    where = f"policy rule '{', '.join(rule.globs)}'"
    unknown = set(rule.operands or ()) - set(OPERANDS)
    if unknown:
        raise ConfigError(f"{where}.operands", "any of " + ", ".join(OPERANDS), ", ".join(unknown))
    if rule.optional:
        return
    if rule.operands and "*" not in rule.globs and not any(each.holds and _reaches(rule, each) for each in known):
        reached = Counter(each.kind for each in known if _reaches(rule, each))
        got = ", ".join(f"{count} {kind}, which cannot" for kind, count in reached.items()) or "no attention"
        roles = ", ".join(sorted({ANY, *(each.role for each in known if each.holds)}))
        fix = f"Those that can: {roles}." if any(each.holds for each in known) else "No attention of this model can."
        raise MatchError(f"{where}.operands", "an attention that can hold quantized operands", got, fix)
    # Operands belong to attentions; everything else that a rule says, to layers.
    matchable = names | ({ANY, *(each.role for each in known)} if rule.operands else set())
    lost = [glob for glob in rule.globs if not any(fnmatchcase(name, glob) for name in matchable)]
    if lost or (rule.about_layers and not any(rule.matches(name) for name in names)):
        got = "no match" + (f" for '{lost[0]}'" if lost and len(rule.globs) > 1 else "")
        raise MatchError(where, "a role of this model", got, f"Its roles: {', '.join(sorted(names))}.")


def _note(kind: str, paths: list[str]) -> str:
    return (
        f"the operands of {len(paths)} {kind} stay float, although the policy quantizes them: only diffusers' Attention with "
        f"its plain processor can hold them ({some(paths)})"
    )
