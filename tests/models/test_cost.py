"""What a call costs is counted without computing it."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DModel
from tests.models.conftest import OddDenoiser
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention

from halftone.models.cost import Work, count
from halftone.models.example_inputs import example_inputs
from halftone.models.roles import QUANTIZABLE, Architecture, Role, architecture
from halftone.models.tape import record, slots


def test_multiply_accumulates_of_a_model_by_hand(odd_table: object) -> None:
    with torch.device("meta"):
        model = OddDenoiser()
        args = (torch.zeros(1, 3, 8, 8), torch.zeros(1))
    found = count(model, architecture(model, odd_table), args, {})  # type: ignore[arg-type]
    shapes = {"enter": 64 * 10 * 27, "grouped": 64 * 15 * 18, "strided": 16 * 7 * 135, "pointwise": 16 * 7 * 7}
    shapes |= {"mix": 64 * 7 * 17, "embed": 7, "leave": 64 * 3 * 63}
    assert {unit.path: unit.work.macs for unit in found.units} == shapes
    layers = {layer.path: layer for unit in found.units for layer in unit.layers}
    assert (layers["grouped"].columns, layers["grouped"].groups, layers["grouped"].rows) == (18, 5, 64)
    assert found.glue.macs == 0 < found.glue.elements
    assert found.input_bytes == 4 * (3 * 64 + 1)


def test_attention_is_two_products() -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return attention(self.to_q(x), x, x) + (x @ x.transpose(-1, -2)) @ x

    with torch.device("meta"):
        model, x = Attentive(), torch.zeros(1, 5, 6)
    found = count(model, Architecture({"to_q": Role("to_q", "q", False)}, frozenset()), (x,), {})
    assert found.forward.macs == 5 * 6 * 6 + 2 * (2 * 5 * 5 * 6)


def test_counting_twice_the_samples(unet: UNet2DModel) -> None:
    model = unet.to("meta")
    one, two = (count(model, architecture(model), *example_inputs(model, batch)) for batch in (1, 2))
    assert two.forward.macs == 2 * one.forward.macs
    assert two.forward.calls == one.forward.calls
    assert two.stream_bytes == 2 * one.stream_bytes
    assert one.forward.over(5, 2) == Work(5 * one.forward.macs, 5 * one.forward.elements, 3 * one.forward.calls)


@pytest.mark.parametrize("name", ["UNet2DModel", "UNet2DConditionModel like SDXL", "SD3Transformer2DModel"])
def test_every_layer_is_in_one_unit(tiny: Callable[[str], nn.Module], name: str) -> None:
    model = tiny(name).to("meta")
    found = count(model, architecture(model), *example_inputs(model, 1))
    paths = [layer.path for unit in found.units for layer in unit.layers]
    assert sorted(paths) == sorted(p for p, m in model.named_modules() if isinstance(m, QUANTIZABLE))


def test_what_a_walk_holds_is_never_less_than_what_lives(unet: UNet2DModel) -> None:
    args, kwargs = example_inputs(unet, 1)
    tape = record(unet, architecture(unet).is_unit, args, kwargs)
    meta = unet.to("meta")
    found = count(meta, architecture(meta), *example_inputs(meta, 1))
    # The tape of shapes is the tape of numbers.
    largest = max(4 * sum(tape.shapes[i].numel() for i in slots((entry.args, entry.out))) for entry in tape.entries)
    assert found.stream_bytes >= largest
