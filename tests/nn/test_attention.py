"""Attention with operand sites reproduces diffusers' attention while nothing is quantized, and quantizes what it says."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from tests.comparison import sqnr

from halftone.formats import Affine
from halftone.nn.attention import OPERANDS, AttentionOperands, QuantizedAttention, can_hold_operands, install_operands
from halftone.quant import QuantSpec

SPECS = {"q": QuantSpec(), "k": QuantSpec(), "v": QuantSpec(), "probs": QuantSpec(zero="none")}
# Settings of the layer, and the shapes of what it is called with: hidden states, context, mask.
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...] | None, tuple[int, ...] | None]] = {
    "self": ({}, (2, 5, 16), None, None),
    "self with a mask": ({}, (2, 5, 16), None, (2, 1, 5)),
    "cross": ({"cross_attention_dim": 12}, (2, 5, 16), (2, 7, 12), None),
    "cross with a mask": ({"cross_attention_dim": 12}, (2, 5, 16), (2, 7, 12), (2, 1, 7)),
    "cross with a norm": (
        {"cross_attention_dim": 12, "cross_attention_norm": "layer_norm"},
        (2, 5, 16),
        (2, 7, 12),
        None,
    ),
    "image": ({"norm_num_groups": 4, "residual_connection": True, "bias": True}, (2, 16, 3, 4), None, None),
    "rescaled": ({"rescale_output_factor": 2.0, "residual_connection": True}, (2, 5, 16), None, None),
    "normed q and k": ({"qk_norm": "layer_norm"}, (2, 5, 16), None, None),
    "unscaled": ({"scale_qk": False}, (2, 5, 16), None, None),
}


def make(kind: str, processor: Callable[[], Any]) -> tuple[Attention, tuple[torch.Tensor, ...], dict[str, Any]]:
    """Return an attention layer and what to call it with."""
    settings, shape, context, mask = LAYERS[kind]
    attention = (
        Attention(query_dim=16, heads=2, dim_head=8, processor=processor(), **settings).eval().requires_grad_(False)
    )
    called: dict[str, Any] = {}
    if context is not None:
        called["encoder_hidden_states"] = torch.randn(context)
    if mask is not None:
        called["attention_mask"] = torch.randn(mask) * 3
    return attention, (torch.randn(shape),), called


# diffusers' plain processor knows no norm of q and k, and its fused one always scales: it never pairs these itself.
PAIRS = [
    (kind, processor)
    for kind in LAYERS
    for processor in (AttnProcessor, AttnProcessor2_0)
    if (kind, processor) not in (("normed q and k", AttnProcessor), ("unscaled", AttnProcessor2_0))
]


@pytest.mark.parametrize(("kind", "processor"), PAIRS)
def test_identity_taps_reproduce_the_plain_layer(kind: str, processor: type) -> None:
    attention, args, kwargs = make(kind, processor)
    wanted = attention(*args, **kwargs)
    operands = install_operands(attention, SPECS)
    operands.taps = {site: lambda x: x for site in OPERANDS}
    assert operands.active
    found = attention(*args, **kwargs)
    assert found.shape == wanted.shape
    assert sqnr(wanted, found) > 120


@pytest.mark.parametrize("kind", LAYERS)
def test_without_taps_or_scales_the_plain_processor_runs(kind: str) -> None:
    attention, args, kwargs = make(kind, AttnProcessor2_0)
    wanted = attention(*args, **kwargs)
    assert not install_operands(attention, SPECS).active
    assert torch.equal(attention(*args, **kwargs), wanted)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_operand_passes_through_its_site(kind: str) -> None:
    attention, args, kwargs = make(kind, AttnProcessor)
    operands = install_operands(attention, SPECS)
    seen: dict[str, torch.Tensor] = {}
    operands.taps = {site: (lambda x, site=site: seen.setdefault(site, x)) for site in OPERANDS}
    attention(*args, **kwargs)
    context = kwargs.get("encoder_hidden_states")
    keys = 7 if context is not None else 12 if args[0].ndim == 4 else 5
    queries = 12 if args[0].ndim == 4 else 5
    shapes = {"q": (2, 2, queries, 8), "k": (2, 2, keys, 8), "v": (2, 2, keys, 8), "probs": (2, 2, queries, keys)}
    assert {site: tuple(x.shape) for site, x in seen.items()} == shapes
    assert torch.allclose(seen["probs"].sum(-1), torch.ones(2, 2, queries))


@pytest.mark.parametrize("site", OPERANDS)
def test_a_quantized_operand_is_quantized(site: str) -> None:
    attention, args, kwargs = make("self", AttnProcessor2_0)
    args = (0.5 * args[0],)  # inside the range of the scale below
    wanted = attention(*args, **kwargs)
    operands = install_operands(attention, {site: SPECS[site]})
    operands.set_site_affine(
        site, Affine(torch.tensor([1 / 32]), torch.zeros(1) if site == "probs" else torch.tensor([128.0]))
    )
    assert operands.active
    found = attention(*args, **kwargs)
    assert not torch.equal(found, wanted)
    assert sqnr(wanted, found) > 15
    rounded: dict[str, torch.Tensor] = {}
    operands.taps = {
        name: (lambda x, name=name: rounded.setdefault(name, (x * 32).round() / 32 if name == site else x))
        for name in OPERANDS
    }
    operands.site_specs = SPECS
    assert sqnr(found, attention(*args, **kwargs)) > 100


def test_masked_tokens_have_no_influence() -> None:
    attention, args, _ = make("cross", AttnProcessor2_0)
    operands = install_operands(attention, SPECS)
    for site, spec in SPECS.items():
        operands.set_site_affine(
            site, spec.affine(torch.tensor([-2.0]), torch.tensor([2.0 if site != "probs" else 1.0]))
        )
    context = torch.randn(2, 7, 12)
    mask = torch.zeros(2, 1, 7)
    mask[..., 4:] = -10000.0
    first = attention(*args, encoder_hidden_states=context, attention_mask=mask)
    context[:, 4:] += 1.0
    assert torch.equal(attention(*args, encoder_hidden_states=context, attention_mask=mask), first)


def test_operands_travel_with_the_layer() -> None:
    attention, args, kwargs = make("self", AttnProcessor2_0)
    operands = install_operands(attention, SPECS)
    for site, spec in SPECS.items():
        operands.set_site_affine(site, spec.affine(torch.tensor([-2.0]), torch.tensor([1.0])))
    names = {name for name in attention.state_dict() if name.startswith("operands.")}
    assert names == {f"operands.{s}_scale" for s in OPERANDS} | {f"operands.{s}_zero_point" for s in "qkv"}
    other = copy.deepcopy(attention)
    assert torch.equal(other(*args, **kwargs), attention(*args, **kwargs))
    empty = AttentionOperands(SPECS)
    empty.allocate()
    assert empty.state_dict().keys() == operands.state_dict().keys()
    empty.load_state_dict(operands.state_dict())
    assert torch.equal(empty.q_scale, operands.q_scale)


def test_a_cast_does_not_round_scales() -> None:
    attention, args, kwargs = make("self", AttnProcessor2_0)
    operands = install_operands(attention, SPECS)
    operands.set_site_affine("q", Affine(torch.tensor([0.1]), torch.tensor([3.0])))
    attention.to(torch.bfloat16)
    assert operands.q_scale.dtype == torch.float32
    assert float(operands.q_scale) == float(torch.tensor(0.1))
    assert attention(args[0].bfloat16(), **kwargs).dtype == torch.bfloat16


def test_installing_twice_keeps_the_plain_processor() -> None:
    attention, *_ = make("self", AttnProcessor2_0)
    install_operands(attention, SPECS)
    install_operands(attention, SPECS)
    assert isinstance(attention.processor, QuantizedAttention)
    assert isinstance(attention.processor.plain, AttnProcessor2_0)


def test_only_known_processors_can_hold_operands() -> None:
    attention, *_ = make("self", AttnProcessor2_0)
    assert can_hold_operands(attention)
    attention.processor = torch.nn.Identity()
    assert not can_hold_operands(attention)
    assert not can_hold_operands(torch.nn.Linear(2, 2))
