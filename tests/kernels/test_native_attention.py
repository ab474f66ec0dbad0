"""Native attention equals the definition: on codes up to a neighbouring code now and then, on bfloat16 as exactly as PyTorch."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from halftone.formats import Affine
from halftone.foundation.errors import KernelError
from halftone.kernels import Attention, Operand, choose_attention
from halftone.kernels.attention_contract import OPERANDS
from halftone.kernels.attentions.native_int8 import NativeInt8
from halftone.kernels.attentions.reference import Reference
from halftone.kernels.native import attention as native
from halftone.kernels.select import attention_library
from halftone.quant import QuantSpec

needs_codes = pytest.mark.skipif(native.why_none("codes") is not None, reason=str(native.why_none("codes")))
needs_bfloat16 = pytest.mark.skipif(native.why_none("bfloat16") is not None, reason=str(native.why_none("bfloat16")))
# Samples, queries, keys, heads, width: around tiles of keys (12), blocks of queries (32), chunks (192); and what diffusers has.
SHAPES = [
    (1, 1, 1, 1, 4),
    (2, 5, 3, 2, 8),
    (1, 33, 13, 3, 20),
    (1, 31, 12, 1, 5),
    (2, 64, 77, 8, 40),
    (1, 100, 191, 2, 32),
    (1, 40, 193, 2, 64),
    (1, 65, 400, 2, 80),
    (2, 32, 24, 2, 160),
    (1, 7, 50, 1, 129),
]


def tensors(shape: tuple[int, ...], spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return q, k, v ``[N, tokens, heads, width]``, views of what projections give."""
    samples, queries, keys, heads, width = shape
    draw = torch.Generator().manual_seed(seed)
    sizes = ((queries, spread, 0.3), (keys, 1.0, 0.0), (keys, 1.0, 0.5))
    return tuple(
        (torch.randn(samples, n, heads * width, generator=draw) * times + more).unflatten(-1, (heads, width))
        for n, times, more in sizes
    )


def quantized(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bits: int = 8, signed: bool = False, clip: float = 1.0
) -> Attention:
    """Return the attention with ranges of its tensors, cut at ``clip`` of them."""
    scale = q.shape[-1] ** -0.5
    probs = ((q.transpose(1, 2) @ k.transpose(1, 2).transpose(-1, -2)) * scale).softmax(-1)
    operands = {}
    for name, x in zip(OPERANDS, (q, k, v, probs), strict=True):
        own = f"{'int' if signed and name != 'probs' else 'uint'}{bits}"
        spec = QuantSpec(own, zero="none" if name == "probs" else "asymmetric")
        affine = spec.affine(x.min().view(1) * clip, x.max().view(1) * clip)
        operands[name] = Operand(spec.number_format, affine)
    return Attention(scale, operands)


def both(attention: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the definition's result in float32, and the kernel's."""
    assert NativeInt8().refusal(attention) is None
    wanted = Reference().prepare(attention)(q.float(), k.float(), v.float())
    found = NativeInt8().prepare(attention)(q, k, v)
    assert wanted is not None and found is not None
    assert found.shape == q.shape and found.dtype == q.dtype and found.is_contiguous()
    return wanted, found.float()


def flips(attention: Attention, wanted: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Return the greatest difference, in probability codes of the widest value, and the root mean square of all, likewise."""
    value = attention.operands["v"]
    widest = float(value.affine.scale) * (value.format.high - value.format.low)
    apart = (found - wanted).abs() / (float(attention.operands["probs"].affine.scale) * widest)
    return float(apart.max()), float(apart.pow(2).mean().sqrt())


@needs_codes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_codes_are_multiplied_as_the_definition_says(shape: tuple[int, ...], spread: float) -> None:
    given = tensors(shape, spread)
    attention = quantized(*given)
    wanted, found = both(attention, *given)
    # A code in a thousand may be the next one; of a row's hundreds it is one or two.
    most, usual = flips(attention, wanted, found)
    assert most < 3
    assert usual < 0.1
    assert float((found - wanted).abs().max()) <= NativeInt8.tolerance * float(wanted.abs().max())


@needs_codes
@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 70), st.integers(1, 210), st.integers(1, 3), st.integers(1, 50)),
    st.integers(2, 8),
    st.booleans(),
    st.floats(0.2, 2.0),
    st.integers(0, 1000),
)
def test_any_shape_format_and_range(shape: tuple[int, ...], bits: int, signed: bool, clip: float, seed: int) -> None:
    given = tensors(shape, 2.0, seed)
    attention = quantized(*given, bits, signed, clip)
    wanted, found = both(attention, *given)
    most, usual = flips(attention, wanted, found)
    assert most < 3
    assert usual < 0.3


@needs_codes
@pytest.mark.parametrize("shape", [(2, 64, 77, 8, 40), (1, 65, 400, 2, 80)], ids=str)
def test_bfloat16_operands_have_the_codes_of_their_numbers(shape: tuple[int, ...]) -> None:
    given = tuple(x.bfloat16() for x in tensors(shape))
    attention = quantized(*(x.float() for x in given))
    run = NativeInt8().prepare(attention)
    found, wide = run(*given), run(*(x.float() for x in given))
    assert found is not None and wide is not None
    assert torch.equal(found, wide.bfloat16())


@needs_codes
def test_layouts_are_read_as_they_are() -> None:
    q, k, v = tensors((2, 40, 40, 3, 20))
    attention = quantized(q, k, v)
    run = NativeInt8().prepare(attention)
    wanted = run(q, k, v)
    packed = torch.cat([x.flatten(2) for x in (q, k, v)], dim=-1).chunk(3, dim=-1)  # cut from one projection
    assert torch.equal(run(*(x.unflatten(-1, (3, 20)) for x in packed)), wanted)
    assert torch.equal(run(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))), wanted)
    assert torch.equal(run(*(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v))), wanted)
    assert torch.equal(run(q.half(), k.half(), v.half()), run(*(x.half().float() for x in (q, k, v))).half())


@needs_codes
def test_a_row_that_rises_along_the_keys() -> None:
    # Each tile's scores are far above those before: the reference is raised again and again.
    q = torch.ones(1, 40, 1, 8)
    k = torch.linspace(-60, 60, 400).view(1, 400, 1, 1).expand(1, 400, 1, 8).contiguous()
    v = torch.randn(1, 400, 1, 8)
    for keys in (k, k.flip(1)):
        attention = quantized(q, keys, v)
        wanted, found = both(attention, q, keys, v)
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
        if native.why_none("bfloat16") is None:
            halves = (q.bfloat16(), keys.bfloat16(), v.bfloat16())
            exact = F.scaled_dot_product_attention(*(x.transpose(1, 2).double() for x in halves)).transpose(1, 2)
            found = native.attend_bfloat16(*halves, 8**-0.5)
            assert float((found.double() - exact).abs().max()) < 0.02


@needs_codes
@pytest.mark.parametrize("shape", [(3, 50, 50, 4, 40), (1, 300, 30, 2, 32)], ids=str)
def test_threads_and_neighbours_change_nothing(shape: tuple[int, ...]) -> None:
    given = tensors(shape)
    attention = quantized(*given)
    run = NativeInt8().prepare(attention)
    wanted, threads = run(*given), torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(run(*given), wanted)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(run(*(x[:1] for x in given)), wanted[:1])


@needs_bfloat16
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_bfloat16_is_as_exact_as_pytorch(shape: tuple[int, ...], spread: float) -> None:
    given = tuple(x.bfloat16() for x in tensors(shape, spread))
    heads = tuple(x.transpose(1, 2) for x in given)
    exact = F.scaled_dot_product_attention(*(x.double() for x in heads)).transpose(1, 2)
    stock = F.scaled_dot_product_attention(*heads).transpose(1, 2)
    found = native.attend_bfloat16(*given, shape[-1] ** -0.5)
    assert found.dtype == torch.bfloat16 and found.shape == stock.shape
    ours, theirs = (float((x.double() - exact).norm()) for x in (found, stock))
    assert ours <= 1.1 * theirs + 1e-3 * float(exact.norm())


def changed(attention: Attention, name: str, **fields: object) -> Attention:
    return replace(attention, operands={**attention.operands, name: replace(attention.operands[name], **fields)})


def refusals() -> list[tuple[Callable[[Attention], Attention], str]]:
    int16, one = QuantSpec("uint16").number_format, torch.ones(1)
    int8 = QuantSpec("int8").number_format
    return [
        (lambda a: replace(a, operands={n: a.operands[n] for n in "qk"}), "v, probs of the attention stays float"),
        (lambda a: changed(a, "k", format=int16), "k format uint16"),
        (lambda a: changed(a, "v", keep=1), "1 tokens of v stay float"),
        (lambda a: changed(a, "q", affine=Affine(one, torch.tensor([2.5]))), "q's zero point"),
        (lambda a: changed(a, "probs", affine=Affine(one, one)), "zero of the probabilities"),
        (lambda a: changed(a, "probs", format=int8, affine=Affine(one, 0 * one)), "zero of the probabilities"),
        (lambda a: changed(a, "q", affine=Affine(torch.ones(2), torch.zeros(2))), "more than one scale"),
        (lambda a: changed(a, "q", affine=Affine(one.to("meta"), one)), "runs on CPUs"),
    ]


@pytest.mark.parametrize(("change", "said"), refusals(), ids=[said for _, said in refusals()])
def test_what_is_refused_is_simulated_and_says_why(change: Callable[[Attention], Attention], said: str) -> None:
    attention = change(quantized(*tensors((1, 4, 4, 1, 8))))
    choice = choose_attention("auto", attention)
    assert choice.name == "reference"
    assert choice.kernel.arithmetic == "simulated"
    assert said in choice.refused["native_int8"]


@needs_bfloat16
def test_one_text_serves_all_samples_and_what_does_not_fit_is_refused() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, tokens, 2, 16, generator=draw).bfloat16() for n, tokens in ((3, 9), (1, 5), (1, 5)))
    found = native.attend_bfloat16(q, k, v, 0.25)
    assert torch.equal(found, native.attend_bfloat16(q, k.repeat(3, 1, 1, 1), v.repeat(3, 1, 1, 1), 0.25))
    for wrong in (
        (q, k[..., :8], v),
        (q, k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1)),
        (q, k, v[:, :4]),
        (q, k.float(), v),
    ):
        with pytest.raises(KernelError, match="q, k and v of one dtype"):
            native.attend_bfloat16(*wrong, 0.25)


@needs_codes
def test_the_engine_decides() -> None:
    attention = quantized(*tensors((1, 4, 4, 1, 8)))
    chosen = {engine: choose_attention(engine, attention).name for engine in ("auto", "torch", "simulate")}
    assert chosen == {"auto": "native_int8", "torch": "native_int8", "simulate": "reference"}
    assert {kernel.arithmetic for kernel in attention_library().values()} == {"integer", "simulated"}


@needs_codes
def test_calls_beyond_the_sums_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors((1, 4, 6, 1, 8))
    run = NativeInt8().prepare(quantized(q, k, v))
    assert run(q, k[:, :0], v[:, :0]) is None
    assert run(q[:, :0], k, v) is None
    monkeypatch.setattr("halftone.kernels.attentions.native_int8.LONGEST", 5)
    assert run(q, k, v) is None


@needs_codes
def test_operators_for_graphs_keep_their_promises() -> None:
    q, k, v = tensors((2, 5, 7, 2, 8))
    given = (q, k, v, [9.0, 9.0, 9.0, 255.0, 0.1, 0.01], [128, 255, 128, 255, 128, 255, 255])
    operators = torch.ops.halftone
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.attention_codes.default, given, test_utils=tests)
    assert torch.equal(operators.attention_codes(*given), native.attend_codes(*given))
    if native.why_none("bfloat16") is None:
        halves = (q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.3)
        torch.library.opcheck(operators.attention_bfloat16.default, halves, test_utils=tests)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [("HALFTONE_NATIVE", "0", "switched off"), ("ONEDNN_MAX_CPU_ISA", "AVX2", "ONEDNN_MAX_CPU_ISA=AVX2")],
)
def test_without_the_loops_there_is_a_reason(variable: str, value: str, said: str) -> None:
    script = "from halftone.kernels.native.attention import why_none; print(why_none('codes'), why_none('bfloat16'))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={**os.environ, variable: value}, capture_output=True, text=True, check=True)
    if native.why_none("codes") is None:
        assert done.stdout.count(said) == 2
    assert "None" not in done.stdout
