"""Whether a recipe's steps can work in their order, judged by what their methods say they need and give."""

from collections.abc import Mapping

from halftone.foundation.errors import ConfigError, suggest
from halftone.methods.contract import INPUT_SCALES, WEIGHT_SCALES, AbstractMethod
from halftone.models.policy import Rule
from halftone.recipes.rooms import givers


def check_order(where: str, policy: tuple[Rule, ...], methods: Mapping[str, AbstractMethod]) -> None:
    """Refuse steps that contradict each other or the policy, before any work is done.

    Args:
        where: the steps, for messages.
        methods: by step name, in order.

    Raises:
        ConfigError: a need that no earlier step meets; a step that comes too late; a policy without the steps that carry it out.
    """
    wants_input = _quantizes_inputs(policy)
    given: dict[str, str] = {}
    for step, method in methods.items():
        for word in method.needs:
            if word not in given and (wants_input or word != INPUT_SCALES):
                later = [name for name, other in methods.items() if word in other.gives]
                raise _missing(where, f"a step that gives {word} before '{step}'", word, later, methods)
        for word in method.before:
            if word in given:
                fix = f"'{step}' changes what they are made for: move it up."
                raise ConfigError(where, f"'{step}' before the steps that give {word}", f"after '{given[word]}'", fix)
        given.update(dict.fromkeys(method.gives, step))
    # Inputs that a later rule takes back may stay named: ranges for them are of no use, and of no harm.
    if INPUT_SCALES in given and not any(rule.input or rule.operands for rule in policy):
        got = f"'{given[INPUT_SCALES]}' gives {INPUT_SCALES} for a weight-only policy"
        raise ConfigError(where, "a policy with an input spec", got, "Drop the step, or give a rule an input spec.")
    for word in (WEIGHT_SCALES, *([INPUT_SCALES] if wants_input else [])):
        if word not in given:
            what = "weights" if word == WEIGHT_SCALES else "inputs"
            raise _missing(where, f"a step that gives {word}, because the policy quantizes {what}", word, [], methods)


def _quantizes_inputs(policy: tuple[Rule, ...]) -> bool:
    """Return whether some activation is to be quantized, as far as that can be told without a model's roles."""
    if any(rule.operands for rule in policy):
        return True  # ``float_input`` is about layers
    all_float = False
    for rule in policy:
        if rule.float_input is False:
            all_float = False
        elif rule.float_input and "*" in rule.globs:
            all_float = True
    taken_back = any(rule.float_input is False for rule in policy)
    return not all_float and any(rule.input and (taken_back or not rule.float_input) for rule in policy)


def _missing(
    where: str, expected: str, word: str, later: list[str], methods: Mapping[str, AbstractMethod]
) -> ConfigError:
    if later:
        return ConfigError(where, expected, f"'{later[0]}' after it", f"Move '{later[0]}' up.")
    known = givers(word)
    if known:
        return ConfigError(where, expected, "none", "It may be " + " or ".join(known) + ".")
    # No method gives it: a typing error in one from outside.
    words = {WEIGHT_SCALES, INPUT_SCALES}.union(*(method.gives for method in methods.values()))
    return ConfigError(where, expected, "none, and no method gives it", suggest(word, sorted(words)))
