"""Bytes and JSON that must never change without a new format version."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from halftone.artifact.checksum import checksum
from halftone.formats import Affine
from halftone.nn import QuantConv2d, QuantLinear, Scheme
from halftone.quant import QuantSpec

GOLDEN = Path(__file__).parent / "golden" / "tiny_unet.json"


# Codes 0 1 2 3 4 as a little-endian bit stream, one row; a second row of the largest codes.
@pytest.mark.parametrize(
    ("bits", "first", "second"),
    [
        (8, "0001020304", "ffffffffff"),
        (4, "103204", "ffff0f"),
        (3, "8846", "ff7f"),
        (2, "e400", "ff03"),
        (1, "0a", "1f"),
        (6, "40200c04", "ffffff3f"),
    ],
)
def test_packed_rows(bits: int, first: str, second: str) -> None:
    layer = QuantLinear(5, 2)
    codes = torch.stack([torch.arange(5) % 2**bits, torch.full([5], 2**bits - 1)]).to(torch.uint8)
    affine = Affine(torch.tensor([[0.5, 0.25]]), torch.tensor([[1.0, 0.0]]))
    layer.hold(codes, affine, Scheme(QuantSpec(f"uint{bits}", "channel")))
    state = layer.state_dict()
    assert state["weight"].numpy().tobytes().hex() == first + second
    assert state["weight_scale"].numpy().tobytes().hex() == "0000003f0000803e"
    assert state["weight_zero_point"].numpy().tobytes().hex() == "0100"
    assert torch.equal(layer.codes(), codes)
    assert layer.dequantized_weight()[0].tolist() == [(code - 1) * 0.5 for code in codes[0].tolist()]


def test_a_convolution_packs_channel_row_column() -> None:
    layer = QuantConv2d(2, 1, (1, 3), bias=False)
    codes = torch.arange(1, 7, dtype=torch.uint8).view(1, 2, 1, 3)
    layer.hold(
        codes, Affine(torch.ones(2, 1), torch.zeros(2, 1)), Scheme(QuantSpec("uint4", "channel"), segments=(1, 1))
    )
    state = layer.state_dict()
    assert state["weight"].shape == (1, 3, 1, 1) and state["weight"].numpy().tobytes().hex() == "214365"
    assert state["weight_scale"].shape == state["weight_zero_point"].shape == (2, 1)
    assert torch.equal(layer.codes(), codes)


def test_the_worked_example_of_the_documentation() -> None:
    layer = QuantLinear(5, 1, bias=False)
    spec = QuantSpec("uint4", "channel")
    codes = torch.tensor([[9, 0, 15, 7, 8]], dtype=torch.uint8)
    layer.hold(codes, Affine(torch.tensor([[0.5]]), torch.tensor([[8.0]])), Scheme(spec))
    assert layer.weight.numpy().tobytes() == bytes([0x09, 0x7F, 0x08])
    assert layer.dequantized_weight().tolist() == [[0.5, -4.0, 3.5, -0.5, 0.0]]


def test_signed_zero_points_are_stored_as_codes() -> None:
    layer = QuantLinear(3, 1, bias=False)
    scheme = Scheme(QuantSpec("int4", "channel"), QuantSpec("int8"))
    codes = torch.tensor([[0, 8, 15]], dtype=torch.uint8)
    layer.hold(codes, Affine(torch.tensor([[1.0]]), torch.tensor([[-3.0]])), scheme)
    layer.set_site_affine("input", Affine(torch.tensor([1.0]), torch.tensor([-100.0])))
    assert layer.weight_zero_point.tolist() == [[5]] and layer.input_zero_point.tolist() == [28]
    assert layer.dequantized_weight().tolist() == [[-5.0, 3.0, 10.0]]
    assert layer.site_affine("input").zero_point.tolist() == [-100.0]


def test_fixed_zero_points_are_not_stored() -> None:
    layer = QuantLinear(2, 1, bias=False)
    scheme = Scheme(QuantSpec("uint4", "channel", "symmetric"), QuantSpec("uint8", zero="none"))
    layer.hold(torch.tensor([[0, 8]], dtype=torch.uint8), Affine(torch.tensor([[1.0]]), torch.tensor([[8.0]])), scheme)
    layer.set_site_affine("input", Affine(torch.tensor([1.0]), torch.tensor([0.0])))
    assert set(layer.state_dict()) == {"weight", "weight_scale", "input_scale"}
    assert layer.dequantized_weight().tolist() == [[-8.0, 0.0]]


def test_config_of_a_tiny_unet(saved: Path) -> None:
    found = json.loads((saved / "unet/config.json").read_text())["quantization_config"]
    found["producer"]["version"] = "VERSION"
    assert found == json.loads(GOLDEN.read_text())


def test_checksum_as_specified(unet: UNet2DModel, saved: Path) -> None:
    tensors = load_file(saved / "unet/diffusion_pytorch_model.safetensors")
    dtypes = {torch.float32: "F32", torch.uint8: "U8"}
    lines = ""
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(str(size) for size in tensor.shape)
        lines += f"{name} {dtypes[tensor.dtype]} [{shape}] {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}\n"
    expected = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    assert checksum(unet.state_dict()) == expected
    assert json.loads(GOLDEN.read_text())["checksum"] == expected


def test_checksum_of_odd_tensors() -> None:
    odd = {"b": torch.tensor(1.5, dtype=torch.bfloat16), "a": torch.empty(0, 3), "c": torch.ones(4, 4).t()[:2]}
    assert checksum(odd) == checksum(dict(reversed(odd.items())))
    assert checksum({**odd, "c": torch.ones(2, 4)}) == checksum(odd)
    assert checksum({**odd, "c": torch.ones(4, 2)}) != checksum(odd)
