"""Every kernel of the library equals the reference. The folder is listed: a new file is tested here without an edit."""

from dataclasses import replace
from typing import get_type_hints

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

from halftone.formats import AbstractFormat, Affine, dequantize, fake_quantize, parse
from halftone.formats.segments import along_input, along_weight
from halftone.foundation.errors import KernelError
from halftone.kernels import AbstractKernel, Operands, Operation
from halftone.kernels.library.reference import Reference, float_call
from halftone.kernels.select import library
from halftone.quant import QuantSpec

Case = tuple[Operation, Operands, torch.Tensor]


def operands(operation: Operation, draw: torch.Generator, symmetric: bool, bias: bool) -> Operands:
    """Return random numbers for ``operation``; scales differ by up to 10 between channels and segments."""

    def grid(format: AbstractFormat, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(int(format.low), int(format.high) + 1, shape, generator=draw).float()

    def scale(*shape: int) -> torch.Tensor:
        return 0.01 * 10 ** -torch.rand(shape, generator=draw)

    kernel = operation.kernel_size if operation.kind == "conv2d" else ()
    segments, out = len(operation.segments), operation.out_channels
    weight = operation.weight_format
    codes = torch.randint(
        0, 2**weight.bits, (out, operation.in_channels // operation.groups, *kernel), generator=draw, dtype=torch.uint8
    )
    middle = torch.full((segments, out), (weight.low + weight.high + 1) / 2)
    zero_point = middle if symmetric else grid(weight, (segments, out))
    data = operation.input_format
    inputs = None if data is None else Affine(scale(segments) * 512 / 2**data.bits, grid(data, (segments,)))
    shift = torch.randn(out, generator=draw) if bias else None
    return Operands(codes, Affine(scale(segments, out), zero_point), inputs, shift)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a layer, its numbers and an input that reaches past the ends of the input's grid."""
    numbers = torch.Generator("cpu").manual_seed(draw(st.integers(0, 2**20)))
    weight = parse(f"uint{draw(st.sampled_from([2, 3, 4, 8]))}")
    data = draw(st.sampled_from([parse("uint8"), parse("uint6"), parse("int8"), parse("uint16"), parse("int12"), None]))
    batch, out = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    segments = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    width = sum(segments)
    if draw(st.booleans()):
        operation = Operation("linear", width, out, segments, weight, data)
        x = torch.randn(
            *draw(st.sampled_from([(batch,), (batch, 5), (2, batch, 3), (20, batch)])), width, generator=numbers
        )
    else:
        operation, size = _convolution(draw, width, out, segments, weight, data)
        x = torch.randn(batch, operation.in_channels, *size, generator=numbers)
        if draw(st.booleans()):
            x = x.contiguous(memory_format=torch.channels_last)
    return operation, operands(operation, numbers, draw(st.booleans()), draw(st.booleans())), x


def _convolution(
    draw: st.DrawFn,
    width: int,
    out: int,
    segments: tuple[int, ...],
    weight: AbstractFormat,
    data: AbstractFormat | None,
) -> tuple[Operation, tuple[int, int]]:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, dilation = draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    groups = draw(st.sampled_from([1, 1, 2, 3])) if len(segments) == 1 else 1
    # Not (1, 2): PyTorch's own convolution of 16-bit floats reads past its input where such an output is one pixel wide (2.13).
    stride, padding = (
        draw(st.sampled_from([(1, 1), (2, 1), (2, 2)])),
        draw(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.sampled_from(["same", "valid"]))),
    )
    if padding == "same":
        stride = (1, 1)
    size = tuple(d * (k - 1) + draw(st.integers(1, 6)) for d, k in zip(dilation, kernel, strict=True))
    segments = tuple(n * groups for n in segments)
    operation = Operation(
        "conv2d", width * groups, out * groups, segments, weight, data, kernel, stride, padding, dilation, groups
    )
    return operation, (size[0], size[1])


KERNELS = sorted(library())
MAY_REFUSE = [HealthCheck.filter_too_much]
DTYPES = {torch.bfloat16: 2**-7, torch.float16: 2**-9}


def terms(operation: Operation, operands: Operands, x: torch.Tensor) -> float:
    """Return the largest sum of absolute terms of an output: what float32 rounding is relative to when terms cancel."""
    weight = dequantize(
        operands.codes, along_weight(operands.weight, operation.segments, operands.codes.ndim), operation.weight_format
    )
    if operands.input is not None and operation.input_format is not None:
        axis = -1 if operation.kind == "linear" else 1
        x = fake_quantize(x, along_input(operands.input, operation.segments, x.ndim, axis), operation.input_format)
    return float(
        float_call(operation, weight.abs(), operands.bias if operands.bias is None else operands.bias.abs())(
            x.abs()
        ).max()
    )


def kernel_named(name: str) -> AbstractKernel:
    return library()[name]


def accepted(kernel: AbstractKernel, case: Case) -> None:
    """Discard the example when the kernel refuses the layer; a refusal is a sentence."""
    reason = kernel.refusal(case[0], case[1])
    assert reason is None or (isinstance(reason, str) and reason.strip())
    assume(reason is None)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=80, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_equals_the_reference(name: str, case: Case) -> None:
    kernel, (operation, operands, x) = kernel_named(name), case
    accepted(kernel, case)
    before = x.clone()
    wanted = Reference().prepare(operation, operands)(x)
    found = kernel.prepare(operation, operands)(x)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert torch.equal(x, before)
    allowed = kernel.tolerance * float(wanted.abs().max()) + 1e-6 * (kernel.tolerance > 0) * terms(
        operation, operands, x
    )
    assert float((found - wanted).abs().max()) <= allowed


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=15, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_low_precision_inputs_differ_by_their_own_precision(name: str, dtype: torch.dtype, case: Case) -> None:
    kernel, (operation, operands, x) = kernel_named(name), case
    accepted(kernel, case)
    x = x.to(dtype)
    wanted = Reference().prepare(operation, operands)(x)
    found = kernel.prepare(operation, operands)(x)
    assert (found.shape, found.dtype) == (wanted.shape, dtype)
    allowed = DTYPES[dtype] * max(float(wanted.abs().max()), terms(operation, operands, x.float()))
    assert float((found.float() - wanted.float()).abs().max()) <= allowed


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=30, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_a_sample_does_not_depend_on_its_neighbours(name: str, case: Case) -> None:
    kernel, (operation, operands, x) = kernel_named(name), case
    accepted(kernel, case)
    call = kernel.prepare(operation, operands)
    together = call(x)
    for sample, result in zip(x, together, strict=True):
        # Float arithmetic may sum in another order for another batch. Integer sums may not differ; their scale and bias may be
        # rounded once or twice, by where a sample falls in a vector.
        rounding = (2.5e-7 if kernel.arithmetic == "integer" else 2e-6) * terms(operation, operands, x)
        assert float((call(sample.unsqueeze(0))[0] - result).abs().max()) <= rounding


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=20, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_preparing_twice_is_the_same_and_shapes_may_change(name: str, case: Case) -> None:
    kernel, (operation, operands, x) = kernel_named(name), case
    accepted(kernel, case)
    call = kernel.prepare(operation, operands)
    first = call(x)
    call(torch.cat([x, x]))
    assert torch.equal(call(x), first)
    assert torch.equal(kernel.prepare(operation, operands)(x), first)


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=20, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_an_empty_batch(name: str, case: Case) -> None:
    kernel, (operation, operands, x) = kernel_named(name), case
    accepted(kernel, case)
    found = kernel.prepare(operation, operands)(x[:0])
    assert found.shape == (0, *kernel.prepare(operation, operands)(x).shape[1:])


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=20, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_another_device_is_refused_in_a_sentence(name: str, case: Case) -> None:
    kernel, (operation, operands, _) = kernel_named(name), case
    reason = kernel.refusal(operation, replace(operands, codes=operands.codes.to("meta")))
    if name == "onednn_int8":
        assert reason
    assert reason is None or reason.strip()


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=20, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_another_padding_is_refused_or_right(name: str, case: Case) -> None:
    kernel, (operation, operands, x) = kernel_named(name), case
    assume(operation.kind == "conv2d")
    strange = replace(operation, padding_mode="replicate")
    reason = kernel.refusal(strange, operands)
    if reason is None:
        wanted = Reference().prepare(strange, operands)(x)
        found = kernel.prepare(strange, operands)(x)
        assert float((found - wanted).abs().max()) <= 1e-4 * (terms(strange, operands, x) + 1e-12)
    else:
        assert reason.strip()


@pytest.mark.parametrize("source", ["dynamic", "per_step"])
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=20, suppress_health_check=MAY_REFUSE)
@given(case=cases())
def test_input_scales_that_are_not_static_are_left_to_the_reference(name: str, source: str, case: Case) -> None:
    kernel, (operation, operands, _) = kernel_named(name), case
    accepted(kernel, case)
    unknown = replace(operation, input_scale=source)
    assert bool(kernel.refusal(unknown, operands)) == (name != "reference")
    if name == "reference":
        # Nothing computes them yet, and it does not pretend to.
        with pytest.raises(KernelError, match="not built yet"):
            kernel.prepare(unknown, operands)


def test_specs_and_operations_know_the_same_input_scales() -> None:
    assert get_type_hints(Operation)["input_scale"] == get_type_hints(QuantSpec)["scale"]


def test_the_library_has_its_kernels() -> None:
    assert {"reference", "onednn_int8", "float_weight"} <= set(KERNELS)
    ranks = [library()[name].preference for name in ("onednn_int8", "float_weight", "reference")]
    assert ranks == sorted(ranks, reverse=True)
