"""Attention with its norm and its sum: diffusers' own way up to rounding, and its own way whenever somebody looks inside."""

import copy
import pickle
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from halftone.kernels.native import product
from halftone.models.surgery import replace_layers
from halftone.nn import Scheme
from halftone.nn.attended import _Held, _Ways, attended
from halftone.nn.attention import install_operands, install_processor
from halftone.nn.running import set_engine
from halftone.quant import QuantSpec

needs_product = pytest.mark.skipif(product.why_none() is not None, reason=f"no native product: {product.why_none()}")
W8, A8, PROBS = QuantSpec("uint8", "channel", "symmetric"), QuantSpec("uint8"), QuantSpec("uint8", zero="none")
WIDTH, TEXT = 32, 24
CLOSE = 2e-3


class Block(nn.Module):
    """A norm and an attention, as a transformer block has them."""

    def __init__(self, cross: bool, operands: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(WIDTH)
        self.attn = Attention(WIDTH, TEXT if cross else None, heads=2, dim_head=16)
        self.eval().requires_grad_(False)
        for layer in replace_layers(self, [n for n, m in self.named_modules() if type(m) is nn.Linear]).values():
            layer.hold_nearest(layer.weight.data, Scheme(W8, A8), "min_max")
            layer.set_site_affine("input", A8.affine(torch.tensor([-4.0]), torch.tensor([4.0])))
        install_processor(self.attn)
        if operands:
            sites = install_operands(self.attn, {"q": A8, "k": A8, "v": A8, "probs": PROBS})
            for site, ends in {"q": (-3.0, 3.0), "k": (-3.0, 3.0), "v": (-3.0, 3.0), "probs": (0.0, 1.0)}.items():
                spec = sites.site_specs[site]
                sites.set_site_affine(site, spec.affine(*(torch.tensor([end]) for end in ends)))
        set_engine(self, "torch")

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None, mask: Any = None) -> torch.Tensor:
        return attended(self.attn, self.norm, x, context, mask)


def inputs(cross: bool, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 9, WIDTH, generator=draw).to(dtype)
    return (x, torch.randn(2, 7, TEXT, generator=draw).to(dtype)) if cross else (x,)


def run(block: nn.Module, *given: Any) -> torch.Tensor:
    with torch.no_grad():
        return block(*given)


def own_way(block: Block, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return block.attn(block.norm(x), encoder_hidden_states=context) + x


def is_open(block: Block, x: torch.Tensor, context: torch.Tensor | None = None) -> bool:
    return _Ways.of(block.attn, block.norm, x, context) is not None


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).square().mean().sqrt() / wanted.float().square().mean().sqrt())


@needs_product
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("operands", [False, True], ids=["float", "operands"])
def test_it_computes_what_diffusers_computes(cross: bool, operands: bool) -> None:
    block, given = Block(cross, operands), inputs(cross)
    kept = given[0].clone()
    assert is_open(block, *given)
    found = run(block, *given)
    assert apart(found, own_way(block, *given)) < CLOSE
    assert apart(found, given[0]) > 0.05, "attention adds something"
    assert torch.equal(given[0], kept), "inputs are not written on"
    set_engine(block, "simulate")
    assert not is_open(block, *given)
    assert apart(found, run(block, *given)) < CLOSE


@needs_product
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("operands", [False, True], ids=["float", "operands"])
def test_half_precision_between_layers_differs_by_its_own_precision(cross: bool, operands: bool) -> None:
    given = inputs(cross, torch.bfloat16)
    block = Block(cross, operands).to(torch.bfloat16)
    assert is_open(block, *given)
    found = run(block, *given)
    assert found.dtype == torch.bfloat16
    exact = run(Block(cross, operands), *(each.float() for each in given))
    assert apart(found, exact) <= 1.1 * apart(own_way(block, *given), exact) + 1e-3


@needs_product
def test_a_text_is_looked_at_once_and_another_one_is_noticed() -> None:
    block, (x, text) = Block(True, False), inputs(True)
    first = run(block, x, text)
    held = _Held.of[block.attn]
    assert torch.equal(run(block, x, text.clone()), first) and _Held.of[block.attn] is held
    other = run(block, x, -text)
    assert not torch.equal(other, first) and len(_Held.of[block.attn]) == 2
    held = _Held.of[block.attn]
    for given, wanted in ((text, first), (-text, other)):
        assert torch.equal(run(block, x, given), wanted) and _Held.of[block.attn] is held, "both halves of guidance"
    written = text.clone()
    run(block, x, written)
    written.data[0, 0] += 1.0  # behind the back of PyTorch's counter of versions
    changed = run(block, x, written)
    assert not torch.equal(changed, first) and apart(changed, own_way(block, x, written)) < CLOSE
    assert torch.equal(run(block, x, text), first), "and back"
    assert apart(run(block, x[:1], text[:1]), own_way(block, x[:1], text[:1])) < CLOSE, "another shape"
    block.attn.to_k.set_site_affine("input", A8.affine(torch.tensor([-1.0]), torch.tensor([1.0])))
    narrow = run(block, x, text)
    assert not torch.equal(narrow, first), "what is prepared is made anew"
    assert apart(narrow, own_way(block, x, text)) < CLOSE
    block.to(torch.bfloat16)
    assert run(block, x.bfloat16(), text.bfloat16()).dtype == torch.bfloat16


@needs_product
def test_attentions_hold_one_copy_of_a_text_together() -> None:
    (first, second), (x, text) = (Block(True, False), Block(True, False)), inputs(True)
    for block in (first, second):
        run(block, x, text)
    assert _Held.of[first.attn][0].text is _Held.of[second.attn][0].text is not text
    run(second, x, text + 1)
    run(first, x, text)
    assert _Held.of[first.attn][0].text is not _Held.of[second.attn][0].text


@needs_product
def test_copies_hold_nothing_of_a_text() -> None:
    block, given = Block(True, False), inputs(True)
    wanted = run(block, *given)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other.attn not in _Held.of
        assert torch.equal(run(other, *given), wanted)


@needs_product
@pytest.mark.parametrize(
    "path", ["norm", "attn", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out", "attn.to_out.0"]
)
def test_whoever_looks_inside_sees_everything(path: str) -> None:
    block, given, called = Block(False, False), inputs(False), []
    handle = block.get_submodule(path).register_forward_pre_hook(lambda *_: called.append(path))
    assert path == "attn.to_out" or (run(block, *given) is not None and called)
    assert not is_open(block, *given)
    handle.remove()
    assert is_open(block, *given)


@needs_product
def test_taps_see_every_site() -> None:
    block, given, seen = Block(False, True), inputs(False), []
    block.attn.to_v.taps["input"] = lambda x: seen.append("input") or x
    block.attn.operands.taps["probs"] = lambda x: seen.append("probs") or x
    run(block, *given)
    assert set(seen) == {"input", "probs"}


@needs_product
def test_adapters_are_applied() -> None:
    block, given = Block(True, False), inputs(True)
    plain = run(block, *given)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), block)
    found = run(block, *given)
    assert not is_open(block, *given)
    assert torch.equal(found, own_way(block, *given)) and apart(found, plain) > 1e-4


@needs_product
def test_kept_tokens_are_those_of_the_float_layer() -> None:
    block, (x, text) = Block(True, False), inputs(True)
    block.attn.to_k.keep_tokens(text[0, :2], torch.full((2, WIDTH), 3.0))
    assert block.attn.to_k.prepared_for_codes() is None and not is_open(block, x, text)
    assert torch.equal(run(block, x, text), own_way(block, x, text))


@needs_product
def test_a_mask_takes_the_other_way() -> None:
    block, (x, text) = Block(True, False), inputs(True)
    mask = torch.zeros(2, 1, 7)
    mask[..., 3:] = -1e4
    with torch.no_grad():
        wanted = block.attn(block.norm(x), encoder_hidden_states=text, attention_mask=mask) + x
    assert torch.equal(run(block, x, text, mask), wanted)


@needs_product
def test_projections_may_read_unlike_ranges() -> None:
    block, (x,) = Block(False, False), inputs(False)
    same = run(block, x)
    block.attn.to_v.set_site_affine("input", A8.affine(torch.tensor([-1.0]), torch.tensor([1.0])))
    assert is_open(block, x)
    found = run(block, x)
    assert apart(found, own_way(block, x)) < CLOSE and apart(found, same) > 2 * CLOSE
