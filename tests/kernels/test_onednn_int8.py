"""The traps of the oneDNN kernel, one by one, on hand-made layers."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from halftone.formats import Affine, parse, quantize
from halftone.foundation.errors import KernelError
from halftone.kernels import Operands, Operation
from halftone.kernels.centred_weight import centred
from halftone.kernels.library import onednn_int8
from halftone.kernels.library.onednn_int8 import OnednnInt8
from halftone.kernels.library.reference import Reference

KERNEL = OnednnInt8()
needs_onednn = pytest.mark.skipif(onednn_int8.missing() is not None, reason=str(onednn_int8.missing()))


def linear(
    weight: str = "uint4", data: str = "uint8", zero_point: float = 8, size: int = 6
) -> tuple[Operation, Operands]:
    codes = (torch.arange(size * size).view(size, size) % 2 ** parse(weight).bits).to(torch.uint8)
    affine = Affine(torch.full((1, size), 0.5), torch.full((1, size), zero_point))
    inputs = Affine(torch.tensor([0.25]), torch.tensor([3.0]))
    return Operation("linear", size, size, (size,), parse(weight), parse(data)), Operands(codes, affine, inputs, None)


def conv(segments: tuple[int, ...] = (4,), out: int = 3, **geometry: Any) -> tuple[Operation, Operands]:
    operation = Operation("conv2d", sum(segments), out, segments, parse("uint4"), parse("uint8"), (3, 3), **geometry)
    codes = torch.randint(0, 16, (out, operation.in_channels // operation.groups, 3, 3), dtype=torch.uint8)
    count = len(segments)
    weight = Affine(torch.rand(count, out) + 0.5, torch.full((count, out), 7.0))
    inputs = Affine(torch.rand(count) * 0.02 + 0.01, torch.arange(100.0, 100 + count))
    return operation, Operands(codes, weight, inputs, torch.randn(out))


@needs_onednn
def test_a_linear_by_hand() -> None:
    operation = Operation("linear", 2, 1, (2,), parse("uint4"), parse("uint8"))
    weight, inputs = (
        Affine(torch.tensor([[0.5]]), torch.tensor([[8.0]])),
        Affine(torch.tensor([0.25]), torch.tensor([3.0])),
    )
    operands = Operands(torch.tensor([[0, 15]], dtype=torch.uint8), weight, inputs, torch.tensor([0.125]))
    # Codes 3+4 and 0 (clamped from 3-8): 0.5*0.25 * (-8*4 + 7*(-3)) + 0.125.
    assert KERNEL.prepare(operation, operands)(torch.tensor([[1.0, -2.0]])).tolist() == [[-6.5]]


@needs_onednn
@pytest.mark.parametrize("zero_point", [0, 1, 117, 118, 254, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_codes_are_those_of_the_definition(zero_point: int, dtype: torch.dtype) -> None:
    # Ties above all: every half between the ends, on both sides of zero; and far beyond.
    x = torch.cat([torch.arange(-600, 600) / 2, torch.tensor([1e9, -1e9, float("inf"), -float("inf"), 1e-30])]).to(
        dtype
    )
    for scale in (1.0, 0.25, 0.0173):
        affine = Affine(torch.tensor([scale]), torch.tensor([float(zero_point)]))
        operation, operands = linear()
        operands = Operands(operands.codes, operands.weight, affine, None)
        (part,) = onednn_int8._parts(operation, operands, centred(operation, operands), 0, 0, 6)
        codes = part.encode(x)
        found = codes if zero_point % 2 == 0 else 255 - codes
        assert torch.equal(found, quantize(x, affine, parse("uint8")))


@needs_onednn
def test_half_a_million_codes_are_those_of_the_definition() -> None:
    # A fused multiply-add would differ in a few of them.
    x, affine = torch.randn(2**19), Affine(torch.tensor([0.0173]), torch.tensor([117.0]))
    operation, operands = linear()
    operands = Operands(operands.codes, operands.weight, affine, None)
    (part,) = onednn_int8._parts(operation, operands, centred(operation, operands), 0, 0, 6)
    assert torch.equal(255 - part.encode(x), quantize(x, affine, parse("uint8")))


@needs_onednn
@pytest.mark.parametrize("zero_point", [0, 1, 255, 256, 30001, 32768, 65535])
def test_two_bytes_of_a_16_bit_code_are_those_of_the_definition(zero_point: int) -> None:
    ties = torch.arange(-140_000, 140_000) * 0.0173 / 2
    x, affine = torch.cat([torch.randn(2**17) * 400, ties]), Affine(torch.tensor([0.0173]), torch.tensor([zero_point]))
    operation, operands = linear(data="uint16")
    operands = Operands(operands.codes, operands.weight, affine, None)
    low, high = onednn_int8._parts(operation, operands, centred(operation, operands), 0, 0, 6)
    codes = low.encode(x).int() + 256 * high.encode(x).int()
    found = codes if zero_point % 2 == 0 else 65535 - codes
    assert torch.equal(found, quantize(x, affine, parse("uint16")).int())
    assert low.zero_point + 256 * high.zero_point in (zero_point, 65535 - zero_point)


@needs_onednn
@pytest.mark.parametrize("data", ["int8", "int4", "uint8", "uint6", "uint1"])
def test_operators_always_get_uint8(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # int8 inputs would run, 4,000 times slower.
    seen, operator = [], onednn_int8.operator

    def spy(name: str, overload: str = "default") -> Callable:
        real = operator(name, overload)
        return lambda codes, *rest: (
            (seen.append(codes.dtype), real(codes, *rest))[1] if "pointwise" in name else real(codes, *rest)
        )

    monkeypatch.setattr(onednn_int8, "operator", spy)
    operation, operands = linear(data=data)
    operands = Operands(operands.codes, operands.weight, Affine(torch.tensor([0.1]), torch.tensor([0.0])), None)
    x = torch.randn(20, 6)  # fewer rows may go another way
    found = KERNEL.prepare(operation, operands)(x)
    assert seen == [torch.uint8]
    torch.testing.assert_close(found, Reference().prepare(operation, operands)(x))


@needs_onednn
def test_weights_are_never_reordered_during_a_call() -> None:
    # A weight in a layout that does not suit the input's size costs more than the convolution, at every call.
    code = """if True:
        import torch
        from halftone.formats import Affine, parse
        from halftone.kernels import Operands, Operation
        from halftone.kernels.library.onednn_int8 import OnednnInt8
        one = torch.ones(1, 192)
        operation = Operation("conv2d", 384, 192, (384,), parse("uint4"), parse("uint8"), (3, 3), padding=(1, 1))
        codes = torch.zeros(192, 384, 3, 3, dtype=torch.uint8)
        call = OnednnInt8().prepare(operation, Operands(codes, Affine(one, one), Affine(one[0, :1], one[0, :1]), None))
        inputs = [torch.zeros(1, 384, n, n).contiguous(memory_format=torch.channels_last) for n in (2, 4, 8, 9)]
        for x in inputs:
            call(x)
        print("MARK", flush=True)
        for x in inputs:
            call(x)
    """
    lines = run(code, ONEDNN_VERBOSE="1").partition("MARK")[2].splitlines()
    assert sum(",exec," in line and ",convolution," in line for line in lines) == 4
    assert [line for line in lines if ",exec," in line and ",reorder," in line] == []


def run(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_onednn
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_without_vnni_wide_weights_are_refused_and_narrow_ones_exact(isa: str) -> None:
    code = """if True:
        from halftone.kernels.library.onednn_int8 import _works
        print(_works(False), _works(True))
    """
    assert run(code, ONEDNN_MAX_CPU_ISA=isa).split() == ["True", "False"]


@needs_onednn
def test_split_shortcuts_accumulate() -> None:
    operation, operands = conv((5, 7, 1), padding=(1, 1))
    x = torch.randn(2, 13, 6, 5)
    call = KERNEL.prepare(operation, operands)
    torch.testing.assert_close(call(x), Reference().prepare(operation, operands)(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(call(x), call(x))


@needs_onednn
def test_padding_is_zero_and_not_code_zero() -> None:
    operation, operands = conv(padding=(1, 1))
    x = torch.zeros(1, 4, 1, 1)
    wanted = operands.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
    assert torch.equal(KERNEL.prepare(operation, operands)(x), wanted)


@needs_onednn
def test_memory_formats() -> None:
    operation, operands = conv(out=8, padding=(1, 1))
    call, x = KERNEL.prepare(operation, operands), torch.randn(2, 4, 6, 6)
    last = call(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    for strided in (x, x.transpose(2, 3).contiguous().transpose(2, 3), F.pad(x, [1, 2, 0, 1])[:, :, :6, 1:7]):
        assert torch.equal(call(strided), last)
    operation, operands = linear()
    call, rows = KERNEL.prepare(operation, operands), torch.randn(2, 6, 5)
    assert torch.equal(call(rows.transpose(1, 2)), call(rows.transpose(1, 2).contiguous()))


@needs_onednn
def test_inference_mode_and_gradients() -> None:
    operation, operands = conv()
    call, x = KERNEL.prepare(operation, operands), torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        first = KERNEL.prepare(operation, operands)
        wanted = first(x)
    assert torch.equal(call(x), wanted) and torch.equal(first(x), wanted)
    assert not call(x.requires_grad_()).requires_grad


@needs_onednn
def test_empty_axes_keep_their_shape() -> None:
    operation, operands = linear()
    assert KERNEL.prepare(operation, operands)(torch.empty(2, 0, 6)).shape == (2, 0, 6)


@needs_onednn
def test_wrong_channel_count_is_an_error() -> None:
    for (operation, operands), x in ((conv((2, 2)), torch.ones(1, 5, 4, 4)), (linear(), torch.ones(3, 7))):
        with pytest.raises(KernelError, match="channels"):
            KERNEL.prepare(operation, operands)(x)


@needs_onednn
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (linear(data="uint8", weight="uint8", zero_point=200), "beyond int8"),
        (linear(weight="uint8", zero_point=7.5), "not an integer"),
        (conv(padding=(1, 1), padding_mode="reflect"), "padding mode 'reflect'"),
        (conv((2, 2), out=4, groups=2), "segments in a grouped"),
        (conv((2, 2), padding=(1, 3)), "padding only"),
        (conv((2, 2), padding=(2, 2)), None),
        (conv((4,), padding=(3, 3)), "padding only"),
        (conv((1,), stride=(1, 2)), "one input channel"),
        (conv((3, 1), stride=(2, 2)), "one input channel"),
        (conv((4,), out=4, groups=4, stride=(2, 1)), "one input channel"),
        (conv((4,), stride=(2, 2)), None),
        (conv((4,), stride=(2, 1)), None),
        (conv((4,), stride=(1, 2)), "along the width alone"),
        (linear(data="uint16"), None),
        (linear(weight="uint9"), "up to 8 bits"),
        (linear(size=300, weight="uint8", zero_point=128), None),
    ],
)
def test_refusals(layer: tuple[Operation, Operands], reason: str | None) -> None:
    refusal = KERNEL.refusal(*layer)
    assert refusal is None if reason is None else reason in str(refusal)


def test_what_never_runs_here() -> None:
    operation, operands = linear()
    assert "meta" in str(KERNEL.refusal(operation, replace(operands, codes=operands.codes.to("meta"))))
    assert "weight-only" in str(KERNEL.refusal(replace(operation, input_format=None), replace(operands, input=None)))


@needs_onednn
def test_sums_beyond_32_bits_are_refused() -> None:
    operation = Operation("linear", 70000, 1, (70000,), parse("uint8"), parse("uint8"))
    affine = Affine(torch.ones(1, 1), torch.full((1, 1), 128.0))
    operands = Operands(
        torch.full((1, 70000), 255, dtype=torch.uint8), affine, Affine(torch.ones(1), torch.zeros(1)), None
    )
    assert KERNEL.refusal(operation, operands) == "sums may exceed 32 bits"


@pytest.mark.parametrize(
    ("patched", "value", "reason"),
    [("_works", lambda wide: False, "misbehave"), ("missing", lambda: "no oneDNN", "no oneDNN")],
)
def test_a_machine_that_cannot(patched: str, value: Callable, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_int8, patched, value)
    assert reason in str(KERNEL.refusal(*linear()))
