"""Replacing layers shares everything and refuses what it cannot place."""

import pytest
import torch
from torch import nn

from halftone.foundation.errors import MatchError
from halftone.models.surgery import replace_layers
from halftone.nn import QuantConv2d, QuantLinear


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), nn.SiLU(), nn.Flatten(), nn.Linear(96, 5))


def test_parameters_are_shared_and_the_output_stays() -> None:
    model, x = small(), torch.randn(2, 3, 4, 4)
    before, weight, bias = model(x), model[0].weight, model[3].bias
    replaced = replace_layers(model, ["0", "3"])
    assert type(model[0]) is QuantConv2d and type(model[3]) is QuantLinear
    assert list(replaced) == ["0", "3"] and replaced["3"] is model[3]
    assert model[0].weight is weight and model[3].bias is bias and model[0].bias is None
    assert torch.equal(model(x), before)


def test_flags_and_hooks_stay() -> None:
    model = small().double().eval()
    model[0].train()
    seen: list[nn.Module] = []
    model[3].register_forward_hook(lambda module, *_: seen.append(module))
    replace_layers(model, {"0": None, "3": None})
    assert model[0].training and not model[3].training and model[3].weight.dtype == torch.float64
    model(torch.randn(1, 3, 4, 4).double())
    assert seen == [model[3]]


def test_meta_device() -> None:
    model = small().to("meta")
    replace_layers(model, ["0"])
    assert model[0].weight.is_meta


def test_a_layer_with_two_names_stays_one_layer() -> None:
    model = nn.Module()
    model.conv = model.alias = nn.Conv2d(2, 2, 1)
    replace_layers(model, ["alias"])
    assert model.conv is model.alias and isinstance(model.conv, QuantConv2d)


def test_quantized_layers_are_left() -> None:
    model = small()
    replace_layers(model, ["0"])
    layer = model[0]
    layer.engine = "simulate"
    replace_layers(model, ["0"])
    assert model[0] is layer and layer.engine == "simulate"


@pytest.mark.parametrize(("path", "message"), [("4", "layer '4'"), ("1", "got SiLU"), ("", "got Sequential")])
def test_refusals_name_the_path_and_change_nothing(path: str, message: str) -> None:
    model = small()
    with pytest.raises(MatchError, match=message):
        replace_layers(model, ["0", path])
    assert type(model[0]) is nn.Conv2d


def test_subclasses_are_refused() -> None:
    model = nn.Module()
    model.attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(MatchError, match="NonDynamicallyQuantizableLinear"):
        replace_layers(model, ["attention.out_proj"])
