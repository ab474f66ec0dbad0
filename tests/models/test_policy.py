"""Policy: ordered rules from roles to specs. The last match wins, field by field; a rule that matches nothing is an error."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DModel
from tests.comparison import sqnr
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.build import build, plain
from halftone.foundation.errors import CalibrationError, ConfigError, MatchError
from halftone.methods.contract import Run
from halftone.methods.rounding.nearest import Nearest
from halftone.models.policy import Plan, Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import architecture
from halftone.nn import QuantizedLayer, Scheme
from halftone.quant import QuantSpec

W4, W8 = QuantSpec("uint4", "channel"), QuantSpec("uint8", "channel")
A8, A6 = QuantSpec("uint8"), QuantSpec("uint6")
OPERANDS = {"q": A8, "probs": QuantSpec(zero="none")}


def plan(model: nn.Module, *rules: Rule, table: Path | None = None) -> Plan:
    return make_plan(model, architecture(model, table), rules)


def test_one_rule_for_all(unet: UNet2DModel) -> None:
    made = plan(unet, Rule("*", weight=W4, input=A8))
    assert set(made.quantized()) == set(architecture(unet).roles)
    assert set(made.quantized().values()) == {Scheme(W4, A8)}
    assert made.operands == {}


def test_the_last_match_wins_for_each_field(unet: UNet2DModel) -> None:
    rules = (
        Rule("*", weight=W4, input=A8),
        Rule("resnet.*", input=A6),
        Rule("resnet.conv1", weight=W8),
        Rule("conv_*", weight=W8),
    )
    made = plan(unet, *rules).quantized()
    assert made["conv_in"] == Scheme(W8, A8)
    assert made["mid_block.resnets.0.conv1"] == Scheme(W8, A6)
    assert made["mid_block.resnets.0.conv2"] == Scheme(W4, A6)
    assert made["mid_block.attentions.0.to_q"] == Scheme(W4, A8)


def test_order_matters(unet: UNet2DModel) -> None:
    first, second = Rule("conv_in", weight=W8), Rule("*", weight=W4)
    assert plan(unet, first, second).quantized()["conv_in"].weight == W4
    assert plan(unet, second, first).quantized()["conv_in"].weight == W8


def test_keep_and_taking_it_back(unet: UNet2DModel) -> None:
    rules = [Rule("*", weight=W4), Rule("conv_*", keep=True), Rule("conv_out", keep=False)]
    made = plan(unet, *rules)
    assert made.layers["conv_in"].scheme is None
    assert made.layers["conv_out"].scheme == Scheme(W4)
    assert "conv_in" not in made.quantized()
    assert made.layers["conv_in"].role == "conv_in"


def test_float_inputs(unet: UNet2DModel) -> None:
    rules = [
        Rule("*", weight=W4, input=A8),
        Rule("resnet.*", float_input=True),
        Rule("resnet.conv2", float_input=False),
    ]
    made = plan(unet, *rules).quantized()
    assert made["mid_block.resnets.0.conv1"] == Scheme(W4)
    assert made["mid_block.resnets.0.conv2"] == Scheme(W4, A8)


def test_layers_without_a_weight_spec_stay_float(unet: UNet2DModel) -> None:
    made = plan(unet, Rule("*", input=A8), Rule("resnet.*", weight=W4))
    assert {made.layers[path].role.split(".")[0] for path in made.quantized()} == {"resnet"}


@pytest.mark.parametrize("glob", ["resnets.*", "conv_i", "Attention.*", "text.embed"])
def test_a_rule_that_matches_nothing_is_an_error(unet: UNet2DModel, glob: str) -> None:
    with pytest.raises(MatchError, match="time.embed"):  # the roles there are
        plan(unet, Rule("*", weight=W4), Rule(glob, keep=True))
    assert plan(unet, Rule("*", weight=W4), Rule(glob, keep=True, optional=True)) == plan(unet, Rule("*", weight=W4))


def test_operands(unet: UNet2DModel) -> None:
    made = plan(unet, Rule("*", weight=W4, operands=OPERANDS), Rule("attention", operands={"q": A6}))
    wanted = {"q": A6, "probs": OPERANDS["probs"]}
    attentions = [path for path, module in unet.named_modules() if type(module).__name__ == "Attention"]
    assert len(attentions) == 4
    assert made.operands == dict.fromkeys(attentions, wanted)


def test_a_rule_for_attention_needs_attention(odd: nn.Module, odd_table: Path) -> None:
    with pytest.raises(MatchError, match="attention"):
        plan(odd, Rule("*", weight=W4), Rule("attention", operands=OPERANDS), table=odd_table)
    assert plan(odd, Rule("*", weight=W4, operands=OPERANDS), table=odd_table).operands == {}


def test_operands_of_self_and_cross_attention_apart(tiny: Callable[[str], nn.Module]) -> None:
    model = tiny("UNet2DConditionModel")
    rules = (Rule("*", weight=W4), Rule("attention.*", operands={"q": A8}), Rule("attention.cross", operands={"q": A6}))
    made = plan(model, *rules)
    assert made.operands
    assert all(specs == {"q": A6 if path.endswith("attn2") else A8} for path, specs in made.operands.items())
    assert {path.rpartition(".")[2] for path in made.operands} == {"attn1", "attn2"}
    only = plan(model, Rule("*", weight=W4), Rule("attention.self", operands={"q": A8})).operands
    assert {path.rpartition(".")[2] for path in only} == {"attn1"}


def test_weights_of_self_and_cross_attention_apart(tiny: Callable[[str], nn.Module]) -> None:
    made = plan(tiny("UNet2DConditionModel"), Rule("*", weight=W4), Rule("attention.cross.[kv]", weight=W8)).layers
    wide = {path.rpartition(".transformer_blocks.0.")[2] for path, layer in made.items() if layer.scheme == Scheme(W8)}
    assert wide == {"attn2.to_k", "attn2.to_v"}


FLUX: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": (2, 2, 4),
}


def test_operands_that_no_attention_can_hold_are_noted_where_the_rule_is_for_all() -> None:
    model = FluxTransformer2DModel(**FLUX)
    made = plan(model, Rule("*", weight=W4, operands=OPERANDS))
    assert made.operands == {}
    (note,) = made.notes
    assert "5 FluxAttention stay float" in note
    assert (
        "(transformer_blocks.0.attn, single_transformer_blocks.0.attn, single_transformer_blocks.1.attn and 2 more)"
        in note
    )
    assert plan(model, Rule("*", weight=W4)).notes == ()


@pytest.mark.parametrize("glob", ["attention", "attention.self", "attention.*", "atten*"])
def test_operands_that_no_attention_can_hold_are_an_error_where_the_rule_names_attention(glob: str) -> None:
    model, rule = FluxTransformer2DModel(**FLUX), Rule(glob, operands=OPERANDS)
    with pytest.raises(MatchError, match=r"operands: .*5 FluxAttention, which cannot\. No attention of this model can"):
        plan(model, Rule("*", weight=W4), rule)
    assert plan(model, Rule("*", weight=W4), replace(rule, optional=True)).operands == {}


def test_a_model_where_only_some_attentions_hold_operands(unet: UNet2DModel) -> None:
    unet.mid_block.attentions[0].processor = nn.Identity()
    made = plan(unet, Rule("*", weight=W4), Rule("attention", operands=OPERANDS))
    assert len(made.operands) == 3
    (note,) = made.notes
    assert "1 Attention stay float" in note
    assert "(mid_block.attentions.0)" in note


def test_operands_on_a_rule_that_reaches_layers_only(unet: UNet2DModel) -> None:
    with pytest.raises(MatchError, match="got no attention. Those that can: attention, attention.self"):
        plan(unet, Rule("*", weight=W4), Rule("attention.self.q", operands=OPERANDS))


def test_a_rule_for_layers_that_reaches_attentions_only(unet: UNet2DModel) -> None:
    with pytest.raises(MatchError, match="attention.self.q"):
        plan(unet, Rule("*", weight=W4), Rule("attention", keep=True))
    with pytest.raises(MatchError, match="attention.self.q"):
        plan(unet, Rule("*", weight=W4), Rule("attention", keep=True, operands=OPERANDS))


def test_a_rule_for_several_globs(unet: UNet2DModel) -> None:
    made = plan(unet, Rule("*", weight=W4), Rule(("conv_*", "time.embed"), weight=W8)).layers
    wide = {planned.role for planned in made.values() if planned.scheme == Scheme(W8)}
    assert wide == {"conv_in", "conv_out", "time.embed"}
    assert all((planned.scheme == Scheme(W8)) == (planned.role in wide) for planned in made.values())
    with pytest.raises(MatchError, match="'conv_in, conv_on': .*no match for 'conv_on'"):
        plan(unet, Rule("*", weight=W4), Rule(("conv_in", "conv_on"), weight=W8))
    with pytest.raises(ConfigError, match="an empty list"):
        Rule(())
    for nothing in ({}, {"operands": {}}, {"optional": True}):
        with pytest.raises(ConfigError, match="policy rule 'conv_in': expected weight, .*roles alone"):
            Rule("conv_in", **nothing)


def test_several_globs_are_read_from_plain_data_and_written_back() -> None:
    rule = build(Rule, {"roles": ["conv_*", "time.*"], "keep": True}, "policy.0")
    assert rule.matches("conv_in")
    assert rule.matches("time.embed")
    assert not rule.matches("resnet.time")
    assert plain(rule)["roles"] == ["conv_*", "time.*"]
    assert plain(build(Rule, {"roles": "*", "keep": True}, ""))["roles"] == "*"
    with pytest.raises(ConfigError, match=r"policy\.0\.roles"):
        build(Rule, {"roles": 3}, "policy.0")


def test_unknown_operands_are_refused(unet: UNet2DModel) -> None:
    with pytest.raises(ConfigError, match="q, k, v, probs"):
        plan(unet, Rule("*", weight=W4, operands={"query": A8}))


def test_a_policy_that_quantizes_nothing_is_refused(unet: UNet2DModel) -> None:
    with pytest.raises(ConfigError, match="at least one quantized layer"):
        plan(unet, Rule("*", weight=W4), Rule("*", keep=True))


def opened(model: nn.Module, *rules: Rule, table: Path | None = None) -> QuantModel:
    return QuantModel.open(model, architecture(model, table), plan(model, *rules, table=table))


def test_opening_changes_no_output(unet: UNet2DModel) -> None:
    args = (torch.randn(2, 3, 8, 8), torch.tensor([1, 900]))
    before = unet(*args).sample
    model = opened(unet, Rule("*", weight=W4, input=A8, operands=OPERANDS), Rule("conv_in", keep=True))
    assert torch.equal(unet(*args).sample, before)
    assert type(unet.conv_in) is nn.Conv2d
    assert isinstance(unet.conv_out, QuantizedLayer)
    assert set(model.originals) == set(model.plan.quantized())
    assert model.layers_in("mid_block.resnets.0") == [
        f"mid_block.resnets.0.{n}" for n in ("conv1", "time_emb_proj", "conv2")
    ]
    assert model.layers_in("conv_out") == ["conv_out"]
    assert {p.split(".")[0] for p in model.layers_in("mid_block")} == {"mid_block"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(unet: UNet2DModel, value: float) -> None:
    unet.mid_block.resnets[0].conv1.weight.data[0, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match="mid_block.resnets.0.conv1"):
        opened(unet, Rule("*", weight=W4))


def test_what_a_recipe_left_float_is_named(unet: UNet2DModel) -> None:
    model = opened(unet, Rule("conv_in", weight=W4, input=A8))
    with pytest.raises(CalibrationError, match="conv_in.*float weight"):
        model.close()
    model.layer("conv_in").hold(*rounded(model, "conv_in"))
    with pytest.raises(CalibrationError, match="conv_in.input"):
        model.close()
    model.layer("conv_in").set_site_affine("input", A8.affine(torch.tensor([-3.0]), torch.tensor([3.0])))
    assert model.close() is unet
    assert model.originals == {}


def rounded(model: QuantModel, path: str) -> tuple:
    from halftone.formats import quantize
    from halftone.formats.segments import along_weight
    from halftone.quant.weights import weight_affine

    scheme, weight = model.plan.quantized()[path], model.originals[path]
    segments = scheme.segments or (weight.shape[1],)
    affine = weight_affine(weight, segments, scheme.weight, "min_max")
    codes = quantize(weight, along_weight(affine, segments, weight.ndim), scheme.weight.number_format)
    return codes, affine, scheme


def test_odd_layers_are_quantized_and_compute_in_float_on_demand(odd: nn.Module, odd_table: Path) -> None:
    args = (torch.randn(2, 3, 8, 8), torch.tensor([10, 900]))
    before = odd(*args)
    model = opened(odd, Rule("*", weight=W8), table=odd_table)
    model.assign("mix", replace(model.plan.quantized()["mix"], segments=(7, 10)))
    for path in model.plan.quantized():
        model.layer(path).hold(*rounded(model, path))
    assert model.layer("mix").weight_scale.shape == (2, 7)
    after = odd(*args)
    assert not torch.equal(after, before)
    assert sqnr(before, after) > 25
    with model.in_float():
        assert torch.equal(odd(*args), before)
    assert torch.equal(odd(*args), after)
    with model.in_float("mix"):
        partly = odd(*args)
    assert not torch.equal(partly, after)
    assert not torch.equal(partly, before)


def test_a_layer_is_assigned_another_scheme(unet: UNet2DModel) -> None:
    model = opened(unet, Rule("*", weight=W4, input=A8), Rule("conv_in", keep=True))
    model.assign("conv_out", Scheme(W8, A6))
    assert model.plan.quantized()["conv_out"] == Scheme(W8, A6)
    assert model.plan.layers["conv_out"].role == "conv_out"
    with pytest.raises(MatchError, match="conv_in.*stays float"):
        model.assign("conv_in", Scheme(W8))
    with pytest.raises(MatchError, match="Did you mean 'conv_out'"):
        model.assign("conv_ou", Scheme(W8))


def test_methods_round_what_a_step_has_left_of_a_weight(unet: UNet2DModel) -> None:
    model = opened(unet, Rule("*", weight=W4))
    path = "mid_block.resnets.0.conv1"
    assert model.target(path) is model.originals[path]
    model.remainders[path] = model.originals[path] / 4
    data = Trajectory((torch.randn(2, 3, 8, 8), torch.tensor([1, 900])), {}, torch.arange(2), {})
    Nearest("min_max").apply(model, data, Run(step="weights"))
    steps = model.layer(path).weight_affine().scale.view(-1, 1, 1, 1)
    error = (model.layer(path).dequantized_weight() - model.originals[path] / 4).abs()
    assert bool((error <= 0.51 * steps).all())
    model.close()
    assert not model.remainders
