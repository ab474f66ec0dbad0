"""Attention with operand sites reproduces diffusers' attention while nothing is quantized, and quantizes what it says."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from tests.comparison import sqnr

from halftone.formats import Affine
from halftone.kernels.native import attention as native
from halftone.models.surgery import replace_layers
from halftone.nn.attention import OPERANDS, AttentionOperands, QuantizedAttention, can_hold_operands, install_operands
from halftone.nn.running import set_engine
from halftone.quant import QuantSpec

needs_codes = pytest.mark.skipif(native.why_none("codes") is not None, reason=str(native.why_none("codes")))
needs_bfloat16 = pytest.mark.skipif(native.why_none("bfloat16") is not None, reason=str(native.why_none("bfloat16")))
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


def hold_all(attention: Attention) -> AttentionOperands:
    """Quantize all four operands with wide ranges."""
    operands = install_operands(attention, SPECS)
    for site, spec in SPECS.items():
        low, high = (0.0, 1.0) if site == "probs" else (-3.0, 3.0)
        operands.set_site_affine(site, spec.affine(torch.tensor([low]), torch.tensor([high])))
    return operands


@needs_codes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_the_integer_kernel_computes_what_simulate_does(kind: str, dtype: torch.dtype) -> None:
    attention, args, kwargs = make(kind, AttnProcessor2_0)
    operands = hold_all(attention)
    assert operands.choice().name == "native_int8"
    set_engine(attention, "simulate")
    assert operands.choice().name == "reference"
    wanted = attention(*args, **kwargs)
    set_engine(attention, "torch")
    assert operands.choice().name == "native_int8"
    attention.to(dtype)
    found = attention(*(x.to(dtype) for x in args), **{name: x.to(dtype) for name, x in kwargs.items()})
    assert found.dtype == dtype
    assert sqnr(wanted, found.float()) > (45 if dtype is torch.float32 else 25)


@needs_codes
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "mask" in kind])
def test_calls_with_a_mask_are_simulated(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, args, kwargs = make(kind, AttnProcessor2_0)
    operands = hold_all(attention)
    found = attention(*args, **kwargs)
    set_engine(attention, "simulate")
    assert torch.equal(attention(*args, **kwargs), found)
    assert operands.prepared() is None


@needs_codes
def test_changed_numbers_are_prepared_again() -> None:
    attention, args, kwargs = make("self", AttnProcessor2_0)
    operands = hold_all(attention)
    before = attention(*args, **kwargs)
    operands.set_site_affine("q", SPECS["q"].affine(torch.tensor([-0.1]), torch.tensor([0.1])))
    after = attention(*args, **kwargs)
    assert not torch.equal(after, before)
    restored = copy.deepcopy(operands.state_dict())
    operands.set_site_affine("q", SPECS["q"].affine(torch.tensor([-3.0]), torch.tensor([3.0])))
    assert torch.equal(attention(*args, **kwargs), before)
    operands.load_state_dict(restored)
    assert torch.equal(attention(*args, **kwargs), after)


@needs_codes
def test_tapped_sites_see_their_tensors_and_nothing_is_prepared() -> None:
    attention, args, kwargs = make("self", AttnProcessor2_0)
    operands = hold_all(attention)
    attention(*args, **kwargs)
    seen: dict[str, torch.Tensor] = {}
    operands.taps = {site: (lambda x, site=site: seen.setdefault(site, x)) for site in OPERANDS}
    assert operands.prepared() is None
    attention(*args, **kwargs)
    assert set(seen) == set(OPERANDS)


@needs_codes
def test_a_worker_prepares_for_itself() -> None:
    attention, args, kwargs = make("self", AttnProcessor2_0)
    hold_all(attention)
    wanted = attention(*args, **kwargs)
    other = pickle.loads(pickle.dumps(attention))
    assert other.operands._prepared is None
    assert torch.equal(other(*args, **kwargs), wanted)


@needs_codes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_attention_is_one_graph(backend: str) -> None:
    attention, args, kwargs = make("cross", AttnProcessor2_0)
    operands = hold_all(attention)
    made = torch.compile(attention, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert sqnr(attention(*args, **kwargs), made(*args, **kwargs)) > 40
        operands.set_site_affine("q", SPECS["q"].affine(torch.tensor([-0.1]), torch.tensor([0.1])))
        assert sqnr(attention(*args, **kwargs), made(*args, **kwargs)) > 40
    torch.compiler.reset()


@needs_bfloat16
@pytest.mark.parametrize("kind", LAYERS)
def test_float_attention_in_bfloat16_is_as_exact_as_the_plain_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, args, kwargs = make(kind, AttnProcessor2_0)
    exact = copy.deepcopy(attention).double()(*(x.double() for x in args), **{n: x.double() for n, x in kwargs.items()})
    attention.bfloat16()
    args, kwargs = tuple(x.bfloat16() for x in args), {name: x.bfloat16() for name, x in kwargs.items()}
    stock = attention(*args, **kwargs)
    used: list[float] = []
    real = native.attend_bfloat16
    monkeypatch.setattr("halftone.nn.attention.attend_bfloat16", lambda *given: (used.append(1.0), real(*given))[1])
    replace_layers(attention, ["to_q", "to_k"])
    found = attention(*args, **kwargs)
    # A mask, and a scale that the plain processor does not know, are the plain processor's.
    assert bool(used) == ("mask" not in kind and kind != "unscaled")
    assert found.dtype == torch.bfloat16
    assert sqnr(exact, found.double()) > sqnr(exact, stock.double()) - 1.0


@needs_bfloat16
def test_who_wants_the_definition_gets_the_plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, args, kwargs = make("self", AttnProcessor2_0)
    attention.bfloat16()
    args = tuple(x.bfloat16() for x in args)
    stock = attention(*args, **kwargs)
    replace_layers(attention, ["to_q"])
    attention.to_q.engine = "simulate"
    monkeypatch.setattr("halftone.nn.attention.attend_bfloat16", lambda *_: pytest.fail("native"))
    assert torch.equal(attention(*args, **kwargs), stock)
    attention.to_q.engine = "auto"
    assert torch.equal(attention.float()(args[0].float(), **kwargs).bfloat16(), attention(args[0].float()).bfloat16())
