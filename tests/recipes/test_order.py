"""Steps that contradict each other are refused before any work; what they need and give is read from the methods themselves."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from halftone.foundation.build import build
from halftone.foundation.errors import ConfigError
from halftone.foundation.registry import find
from halftone.methods.contract import AbstractMethod, StepReport
from halftone.models.policy import Rule
from halftone.quant import QuantSpec
from halftone.recipes import Recipe
from halftone.recipes.order import check_order

NEAREST = {"method": "rounding/nearest"}
GPTQ = {"method": "rounding/gptq"}
ADA_ROUND = {"method": "reconstruct/ada_round"}
STATIC = {"method": "ranges/static"}
LEARN = {"method": "reconstruct/learned_steps"}
SPLIT = {"method": "transforms/split_shortcut"}
W4 = {"roles": "*", "weight": {"format": "uint4", "granularity": "channel"}}
A8 = {"format": "uint8"}
W4A8 = {**W4, "input": A8}


def made(policy: list[dict[str, Any]], **steps: dict[str, Any]) -> dict[str, AbstractMethod]:
    data = {"name": "mine", "title": "mine", "paper": "none", "policy": policy, "steps": steps}
    return build(Recipe, data).methods()


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ({"g": GPTQ, "r": STATIC}, r"gives weight_scales before 'g', got none. It may be rounding/nearest\."),
        ({"rec": ADA_ROUND, "w": NEAREST, "r": STATIC}, "before 'rec', got 'w' after it. Move 'w' up"),
        ({"r": STATIC, "w": NEAREST}, "weight_scales before 'r'"),
        ({"w": NEAREST, "learn": LEARN, "r": STATIC}, "input_scales before 'learn', got 'r' after it"),
        ({"w": NEAREST, "s": SPLIT, "r": STATIC}, "'s' before the steps that give weight_scales, got after 'w'"),
        ({"w": NEAREST}, "gives input_scales, because the policy quantizes inputs, got none. It may be ranges/static"),
        ({"s": SPLIT}, "gives weight_scales, because the policy quantizes weights"),
    ],
    ids=[
        "nothing to start from",
        "rounds late",
        "ranges first",
        "learns early",
        "splits late",
        "no ranges",
        "no weights",
    ],
)
def test_contradictions(steps: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        made([W4A8], **steps)


def test_ranges_for_a_weight_only_policy() -> None:
    with pytest.raises(ConfigError, match="'r' gives input_scales for a weight-only policy"):
        made([W4], w=NEAREST, r=STATIC)


@pytest.mark.parametrize(
    "policy",
    [
        [{**W4, "operands": {"q": A8}, "float_input": True}],
        [{**W4, "float_input": True}, {"roles": "*", "operands": {"q": A8}}],
        [W4A8, {"roles": "*", "float_input": True}, {"roles": "conv_in", "float_input": False}],
        [{**W4A8, "float_input": True}, {"roles": "conv_in", "float_input": False}],
    ],
    ids=["operands in the rule", "operands in another", "taken back", "named with what is taken back"],
)
def test_float_inputs_that_leave_something_to_quantize(policy: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="gives input_scales, because the policy quantizes inputs"):
        made(policy, w=NEAREST)
    made(policy, w=NEAREST, r=STATIC)


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ([W4A8], {"s": SPLIT, "w": NEAREST, "g": GPTQ, "rec": ADA_ROUND, "r": STATIC, "learn": LEARN}),
        ([W4A8], {"w": NEAREST, "r": STATIC, "g": GPTQ}),
        # Learned weight steps need no input scales where there are no inputs to quantize.
        ([W4], {"w": NEAREST, "learn": LEARN}),
        ([W4A8, {"roles": "*", "float_input": True}], {"w": NEAREST}),
        ([W4A8, {"roles": "*", "float_input": True}], {"w": NEAREST, "r": STATIC}),
        ([W4A8, {"roles": ["conv_in", "*"], "float_input": True}], {"w": NEAREST}),
    ],
    ids=[
        "all of them",
        "ranges before gptq",
        "weights only",
        "float inputs",
        "ranges of no use",
        "float inputs, among several globs",
    ],
)
def test_orders_that_work(policy: list[dict[str, Any]], steps: dict[str, Any]) -> None:
    assert list(made(policy, **steps)) == list(steps)


@dataclass(frozen=True)
class Silent(AbstractMethod):
    """Says nothing about itself."""

    def apply(self, model: Any, data: Any, run: Any) -> StepReport:
        return StepReport()


class Ranks(Silent):
    gives: ClassVar[tuple[str, ...]] = ("ranking",)


class Chooses(Silent):
    needs: ClassVar[tuple[str, ...]] = ("ranking",)
    before: ClassVar[tuple[str, ...]] = ("weight_scales",)


class Mistyped(Silent):
    needs: ClassVar[tuple[str, ...]] = ("weight_scale",)


def test_words_of_a_package_of_its_own() -> None:
    nearest = find("halftone.methods.rounding", "nearest")()
    policy = (Rule("*", weight=QuantSpec("uint4", "channel")),)
    check_order("steps", policy, {"rank": Ranks(), "choose": Chooses(), "say": Silent(), "w": nearest})
    with pytest.raises(ConfigError, match="ranking before 'choose', got 'rank' after it"):
        check_order("steps", policy, {"choose": Chooses(), "rank": Ranks(), "w": nearest})
    with pytest.raises(ConfigError, match="'choose' before the steps that give weight_scales"):
        check_order("steps", policy, {"rank": Ranks(), "w": nearest, "choose": Chooses()})
    with pytest.raises(ConfigError, match="no method gives it. Did you mean 'weight_scales'"):
        check_order("steps", policy, {"w": nearest, "typo": Mistyped()})
