"""The native product: every geometry, what is done on the way out, weights in half a byte; absent where it may not run."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from halftone.formats import Affine, parse
from halftone.kernels import Fuses, Grid, HoldsCodes, Operands, Operation
from halftone.kernels.input_codes import MAGIC
from halftone.kernels.library.reference import Reference
from halftone.kernels.library.vnni_int8 import VnniInt8
from halftone.kernels.native import product
from halftone.kernels.native.product import ProductWeight

needs_product = pytest.mark.skipif(product.why_none() is not None, reason=f"no native product: {product.why_none()}")
KERNEL = VnniInt8()


def numbers(operation: Operation, keep: str = "ready", bits: int = 4) -> Operands:
    draw = torch.Generator().manual_seed(0)
    kernel = operation.kernel_size if operation.kind == "conv2d" else ()
    shape = (operation.out_channels, operation.in_channels, *kernel)
    codes = torch.randint(0, 2**bits, shape, generator=draw, dtype=torch.uint8)
    count = len(operation.segments)
    zero = torch.randint(5, 9, (count, operation.out_channels), generator=draw).float()
    weight = Affine(torch.rand(count, operation.out_channels, generator=draw) * 0.01 + 0.01, zero)
    inputs = Affine(torch.full((count,), 0.02), torch.arange(117.0, 117 + count))
    return Operands(codes, weight, inputs, torch.randn(operation.out_channels, generator=draw), keep)  # type: ignore[arg-type]


@needs_product
@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 140),
    width=st.sampled_from([4, 12, 64, 136]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(5, 17), st.integers(5, 11)),
    batch=st.integers(1, 8),
    keep=st.sampled_from(["ready", "packed"]),
)
def test_convolutions_of_every_geometry(
    out: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
    batch: int,
    keep: str,
) -> None:
    operation = Operation(
        "conv2d", width, out, (width,), parse("uint4"), parse("uint8"), kernel, stride, padding, dilation
    )
    operands = numbers(operation, keep)
    assert KERNEL.refusal(operation, operands) is None
    x = torch.randn(batch, width, *size, generator=torch.Generator().manual_seed(1))
    wanted = Reference().prepare(operation, operands)(x)
    call = KERNEL.prepare(operation, operands)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.allclose(call(x.contiguous(memory_format=layout)), wanted, atol=1e-5 * float(wanted.abs().max()))


@needs_product
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 5, 77, 253, 600])
def test_sums_are_exact_and_packed_weights_change_no_bit(rows: int, bits: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 2**bits, (200, 2060, 1), generator=draw, dtype=torch.uint8)
    zero = torch.full((200,), 2 ** (bits - 1), dtype=torch.int32)
    x = torch.randint(0, 256, (rows, 2060), generator=draw, dtype=torch.uint8)
    exact = (x.double() - 6) @ (codes[..., 0].double() - zero.double().view(-1, 1)).t()
    for nibbles in (False, True) if bits == 4 else (False,):
        weight, out = ProductWeight(codes, zero, torch.ones(200), 6, nibbles), torch.empty(rows, 200)
        weight.product(x, None, out)
        assert torch.equal(out.double(), exact.float().double())
        assert torch.equal(weight.codes(), codes), "whoever asks gets them back"


@pytest.mark.parametrize(
    ("mask", "allowed"),
    [("", True), ("ALL", True), ("default", True), ("AVX10_1_512_AMX", True), ("AVX512_CORE_AMX", True)]
    + [("AVX512_CORE_VNNI", False), ("AVX512_CORE_BF16", False), ("AVX2", False)],
)
def test_a_mask_leaves_onednn_its_tiles_or_not(monkeypatch: pytest.MonkeyPatch, mask: str, allowed: bool) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", mask)
    assert product.mask_allows_amx() == allowed


@needs_product
@pytest.mark.parametrize("outputs", [8, 64, 200])
def test_more_threads_than_pieces_change_nothing(outputs: int) -> None:
    operation = Operation("linear", 128, outputs, (128,), parse("uint4"), parse("uint8"))
    call, x = KERNEL.prepare(operation, numbers(operation)), torch.randn(90, 128)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 9):
            torch.set_num_threads(count)
            found.append(call(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)


@needs_product
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_on_the_way_out(dtype: torch.dtype) -> None:
    operation = Operation("conv2d", 8, 70, (8,), parse("uint4"), parse("uint8"), (3, 3), padding=(1, 1))
    call = KERNEL.prepare(operation, numbers(operation))
    assert isinstance(call, Fuses)
    codes = torch.randint(0, 256, (3, 8, 6, 7), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    added, shift = torch.randn(3, 70, 6, 7).to(dtype), torch.randn(3, 70).to(dtype)
    before = added.clone()
    wanted = call.from_codes(codes, torch.float32) + shift.float()[:, :, None, None] + added.float()
    found = call.fused(codes, dtype, added, shift)
    assert found.dtype == dtype
    assert torch.equal(added, before)
    assert torch.allclose(found.float(), wanted, atol=1e-5 if dtype is torch.float32 else 0.03, rtol=0.01)


@needs_product
def test_a_gate_on_the_way_out() -> None:
    operation = Operation("linear", 64, 256, (64,), parse("uint4"), parse("uint8"))
    operands = numbers(operation)
    call, grid = KERNEL.prepare(operation, operands), Grid(11.0, MAGIC + 100, 255)
    codes = torch.randint(0, 256, (2, 300, 64), dtype=torch.uint8)
    up, gate = call.from_codes(codes, torch.float32).chunk(2, dim=-1)
    wanted = ((up * F.gelu(gate)) * grid.factor + 100).round().clamp(0, 255)
    apart = (call.gated(codes, grid).float() - wanted).abs()
    assert float(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 1e-3
    odd = Operation("linear", 64, 200, (64,), parse("uint4"), parse("uint8"))
    assert KERNEL.prepare(odd, numbers(odd)).gated(codes, grid) is None, "halves that share a panel go another way"


@needs_product
def test_segments_come_back_as_codes() -> None:
    operation = Operation("conv2d", 12, 9, (4, 8), parse("uint4"), parse("uint8"), (3, 3), padding=(1, 1))
    operands = numbers(operation, "packed")
    call = KERNEL.prepare(operation, operands)
    assert isinstance(call, HoldsCodes)
    assert torch.equal(call.codes(), operands.codes)


@pytest.mark.parametrize(
    ("name", "value"), [("HALFTONE_NATIVE", "0"), ("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")]
)
def test_it_does_not_run_where_it_is_switched_off_or_masked(name: str, value: str) -> None:
    program = """
import torch
from tests.kernels.test_product import KERNEL, Operation, Reference, numbers, parse
from halftone.kernels import choose
operation = Operation("linear", 64, 32, (64,), parse("uint4"), parse("uint8"))
operands = numbers(operation)
assert KERNEL.refusal(operation, operands)
choice = choose("auto", operation, operands)
assert choice.name != "vnni_int8" and choice.refused["vnni_int8"], choice
x = torch.randn(5, 64)
wanted = Reference().prepare(operation, operands)(x)
assert torch.allclose(choice.kernel.prepare(operation, operands)(x), wanted, atol=1e-4)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, name: value}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
