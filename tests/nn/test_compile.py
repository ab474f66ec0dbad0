"""``torch.compile`` takes a quantized denoiser whole, and what it makes computes what the denoiser computes."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import AttnUpBlock2D
from tests.comparison import sqnr
from tests.tiny import randomised, tiny_unet
from torch import nn

from halftone.formats import quantize
from halftone.formats.segments import along_weight
from halftone.kernels import compiled
from halftone.kernels.library import onednn_int8
from halftone.models.surgery import replace_layers
from halftone.nn import Scheme
from halftone.nn.attention import can_hold_operands, install_operands
from halftone.nn.layers import quantized_layers
from halftone.nn.running import set_engine
from halftone.quant import QuantSpec

W4, A8, A16 = QuantSpec("uint4", "channel"), QuantSpec("uint8"), QuantSpec("uint16")
SITES = {"q": A8, "k": A8, "v": A8, "probs": QuantSpec("uint8", zero="none")}
# A compiler sums in another order and has its own exp; of its codes one or the other is the neighbour of what eager rounds to.
CLOSE = 40
# Inductor imports what PyTorch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
needs_onednn = pytest.mark.skipif(onednn_int8.missing() is not None, reason=str(onednn_int8.missing()))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Leave no graphs to other tests, and take none from them."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def quantized(model: nn.Module, inputs: QuantSpec | None = A8, split: dict[str, int] | None = None) -> nn.Module:
    """Return the model with all layers and attention operands quantized; ``split``: channels of a layer's first segment."""
    model.requires_grad_(False)
    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for path, layer in replace_layers(model, paths).items():
        first = (split or {}).get(path)
        segments = (first, layer.in_width - first) if first else ()
        parts = layer.weight.data.split(list(segments) if first else layer.weight.shape[1], dim=1)
        affine = W4.affine(*(torch.stack([end(p.flatten(1), 1) for p in parts]) for end in (torch.amin, torch.amax)))
        shown = along_weight(affine, segments or (layer.weight.shape[1],), layer.weight.ndim)
        layer.hold(quantize(layer.weight.data, shown, W4.number_format), affine, Scheme(W4, inputs, segments))
        if inputs is not None:
            ends = torch.linspace(3.0, 5.0, len(parts))
            layer.set_site_affine("input", inputs.affine(-ends, ends + 1))
    for attention in [module for module in model.modules() if inputs and can_hold_operands(module)]:
        operands = install_operands(attention, SITES)
        for site, spec in SITES.items():
            operands.set_site_affine(site, spec.affine(torch.tensor([-2.0]), torch.tensor([2.0])))
    return model


@pytest.fixture
def block() -> nn.Module:
    """A block of the up path, float: a residual block whose shortcut reads two tensors, then attention."""
    made = AttnUpBlock2D(
        in_channels=4,
        prev_output_channel=8,
        out_channels=8,
        temb_channels=6,
        num_layers=1,
        resnet_groups=4,
        attention_head_dim=4,
        upsample_type=None,
    )
    return randomised(made, 0.3)


KINDS = ("8 bits", "16 bits", "weight-only", "simulate")
SPLIT = {"resnets.0.conv_shortcut": 8}


def images(batch: int, size: int) -> tuple[Any, ...]:
    """Return what such a block is called with."""
    hidden, skipped = torch.randn(batch, 8, size, size), torch.randn(batch, 4, size, size)
    return hidden, (skipped,), torch.randn(batch, 6)


def run(model: Callable[..., Any], *inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(*inputs)
    return found if isinstance(found, torch.Tensor) else found.sample


def whole(model: nn.Module, backend: str = "eager", dynamic: bool | None = None) -> Callable[..., Any]:
    """Return the model compiled in one graph; ``eager`` only traces it, which takes a tenth of the time."""
    return torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic)


@needs_onednn
@pytest.mark.slow
def test_a_compiled_block_computes_the_same_at_any_size(block: nn.Module) -> None:
    # Without the attention, whose loops would double the compiler's time. Sizes are left open at once; else the second one
    # would be compiled again, with open sizes.
    residual = quantized(block, split=SPLIT).resnets[0]
    made = whole(residual, "inductor", dynamic=True)
    for batch, size in ((2, 6), (3, 4)):
        inputs = torch.randn(batch, 12, size, size), torch.randn(batch, 6)
        assert sqnr(run(residual, *inputs), run(made, *inputs)) > CLOSE


@needs_onednn
@pytest.mark.slow
@pytest.mark.parametrize("spec", [A8, A16], ids=["one byte", "two bytes"])
def test_compiled_codes_are_those_of_the_definition(spec: QuantSpec) -> None:
    # Ties, both ends and far beyond: a fused multiply-add or a saturating conversion would show.
    layer = quantized(nn.Sequential(nn.Linear(8, 4)), spec)
    scale = layer[0].site_affine("input").scale
    x = torch.cat([torch.arange(-600, 600) / 2 * scale, torch.randn(8 * 50) * 3, torch.tensor([1e9, -1e9] * 4)])
    assert torch.equal(run(whole(layer, "inductor"), x.view(-1, 8)), run(layer, x.view(-1, 8)))


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "engine"), [(None, "auto"), (A8, "simulate")], ids=["weight-only", "simulate"])
def test_float_arithmetic_compiles_too(inputs: QuantSpec | None, engine: str) -> None:
    layer, x = quantized(nn.Sequential(nn.Conv2d(8, 6, 3)), inputs, {"0": 5}), torch.randn(2, 8, 7, 9)
    set_engine(layer, engine)
    assert sqnr(run(layer, x), run(whole(layer, "inductor"), x)) > 100


@pytest.mark.parametrize(
    ("inputs", "engine"), [(A8, "auto"), (A16, "auto"), (None, "auto"), (A8, "simulate")], ids=KINDS
)
def test_no_graph_breaks(block: nn.Module, inputs: QuantSpec | None, engine: str) -> None:
    quantized(block, inputs, SPLIT)
    set_engine(block, engine)
    given = images(2, 6)
    # Compiled first: nothing has been prepared by an ordinary call.
    found = run(whole(block), *given)
    assert sqnr(run(block, *given), found) > 100


@needs_onednn
@pytest.mark.slow
def test_a_whole_denoiser_is_one_graph() -> None:
    unet = quantized(randomised(tiny_unet()))
    made = whole(unet)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    assert sqnr(run(unet, *inputs), run(made, *inputs)) > 100


def small(spec: QuantSpec | None = A8) -> tuple[nn.Module, torch.Tensor]:
    """Return a quantized convolution and an input."""
    return quantized(nn.Sequential(nn.Conv2d(8, 6, 3, stride=2, padding=1)), spec), torch.randn(2, 8, 7, 9)


@needs_onednn
@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Conv2d(8, 6, 3, stride=2, padding=1), (2, 8, 7, 9)),
        lambda: (nn.Conv2d(8, 6, (3, 2), padding="same"), (2, 8, 7, 9)),
        lambda: (nn.Conv2d(8, 6, 3, dilation=2, groups=2), (1, 8, 7, 9)),
        lambda: (nn.Conv2d(8, 1, 1), (3, 8, 1, 1)),
        lambda: (nn.Linear(8, 6), (8,)),
        lambda: (nn.Linear(8, 6), (2, 3, 5, 8)),
    ],
    ids=["strided", "uneven margins", "dilated groups", "one pixel", "vector", "four axes"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "transposed"])
def test_the_operator_keeps_its_promises(
    make: Callable[[], tuple[nn.Module, tuple[int, ...]]], dtype: torch.dtype, last: bool
) -> None:
    layer, shape = make()
    layer, x = quantized(nn.Sequential(layer)), torch.randn(shape).to(dtype)
    if last and len(shape) > 1:
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    given: list[tuple] = []
    real = compiled.product
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        patch.setattr(compiled, "product", lambda *arguments: (given.append(arguments), real(*arguments))[1])
        found = run(layer, x)
    assert found.dtype == dtype
    assert torch.equal(found, run(layer, x))
    # Shape, dtype and layout of the result are what graphs were told, and no input is written on.
    torch.library.opcheck(torch.ops.halftone.product.default, given[0], test_utils=("test_schema", "test_faketensor"))


@needs_onednn
def test_a_changed_layer_is_compiled_again() -> None:
    layer, x = small()
    made = whole(layer)
    before = run(made, x)
    wide = torch.tensor([-90.0]), torch.tensor([90.0])
    layer[0].set_site_affine("input", A8.affine(*wide))
    assert torch.equal(run(made, x), run(layer, x))
    assert not torch.equal(run(made, x), before)
    set_engine(layer, "simulate")
    assert torch.equal(run(made, x), run(layer, x))


def test_weight_only_follows_the_dtype_of_its_input() -> None:
    layer, x = small(None)
    made = whole(layer)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        found = run(made, x.to(dtype))
        assert found.dtype == dtype
        assert torch.equal(found, run(layer, x.to(dtype)))


@needs_onednn
def test_nothing_outlives_the_model() -> None:
    gc.collect()
    before = len(compiled._PRODUCTS)
    layer, x = small()
    made = whole(layer)
    run(made, x)
    assert len(compiled._PRODUCTS) == before + 1
    layer[0].refresh()
    run(made, x)
    gc.collect()
    assert len(compiled._PRODUCTS) == before + 1, "what a layer had prepared before is gone"
    del layer, made
    gc.collect()
    assert len(compiled._PRODUCTS) == before


@needs_onednn
def test_ordinary_calls_do_without_the_operator(block: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized(block, split=SPLIT)
    assert {layer.choice().name for _, layer in quantized_layers(block)} <= {"vnni_int8", "onednn_int8"}

    def refused(*_: Any) -> None:
        raise AssertionError("it costs tens of microseconds")

    monkeypatch.setattr(compiled, "product", refused)
    assert run(block, *images(2, 6)).isfinite().all()
