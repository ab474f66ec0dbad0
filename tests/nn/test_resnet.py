"""The residual block that writes codes: diffusers' block up to rounding, and diffusers' own way whenever somebody looks inside."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from halftone.kernels.native import build, loops
from halftone.models.roles import Architecture
from halftone.models.surgery import replace_layers
from halftone.nn import QuantConv2d, QuantizedResnetBlock2D, Scheme
from halftone.nn.running import set_engine
from halftone.quant import QuantSpec

needs_loops = pytest.mark.skipif(build.why_no_loops() is not None, reason=f"no native loops: {build.why_no_loops()}")
W8, A8 = QuantSpec("uint8", "channel", "symmetric"), QuantSpec("uint8")
LAYERS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")


def quantized(block: ResnetBlock2D, skip: tuple[str, ...] = ()) -> ResnetBlock2D:
    """Return the block with 8-bit layers whose ranges hold what a few standard deviations reach."""
    block = block.eval().requires_grad_(False)
    paths = [name for name in LAYERS if getattr(block, name, None) is not None and name not in skip]
    for layer in replace_layers(block, paths).values():
        weight = layer.weight.data
        rows = weight.flatten(1)
        affine = W8.affine(rows.amin(1).view(1, -1), rows.amax(1).view(1, -1))
        shown = affine.view(-1, *[1] * (weight.ndim - 1))
        codes = (weight / shown.scale + shown.zero_point).round().clamp(0, 255).to(torch.uint8)
        layer.hold(codes, affine, Scheme(W8, A8))
        layer.set_site_affine("input", A8.affine(torch.tensor([-3.0]), torch.tensor([6.0])))
    set_engine(block, "torch")
    return block


@pytest.fixture
def make() -> Callable[..., ResnetBlock2D]:
    def made(skip: tuple[str, ...] = (), **changes: object) -> ResnetBlock2D:
        torch.manual_seed(0)
        given = {"in_channels": 16, "out_channels": 24, "temb_channels": 12, "groups": 8, "groups_out": 4, **changes}
        return quantized(ResnetBlock2D(**given), skip)

    return made


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 16, 10, 10).to(memory_format=torch.channels_last), torch.randn(3, 12)


def own_way(block: ResnetBlock2D, *inputs: torch.Tensor) -> torch.Tensor:
    """Return what diffusers' forward computes with the same layers."""
    with torch.no_grad():
        return ResnetBlock2D.forward(block, *inputs)


def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record, for each norm on its way into codes, whether it went that way."""
    taken: list[bool] = []
    real = loops.normalise

    def watched(*given: object) -> torch.Tensor | None:
        found = real(*given)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(loops, "normalise", watched)
    return taken


@needs_loops
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"out_channels": 16, "groups_out": 8},
        {"output_scale_factor": 1.4},
        {"skip_time_act": True},
        {"temb_channels": None, "time_embedding_norm": "group"},  # of an autoencoder
    ],
    ids=str,
)
def test_it_computes_what_diffusers_block_computes(
    make: Callable[..., ResnetBlock2D], inputs: tuple, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, taken = make(**changes), ways(monkeypatch)
    if block.time_emb_proj is None:
        inputs = (inputs[0], None)
    kept = inputs[0].clone()
    assert type(block) is QuantizedResnetBlock2D
    with torch.no_grad():
        found = block(*inputs)
    assert taken == [True, True]
    wanted = own_way(block, *inputs)
    # A code may be its neighbour here and there: a step of the input, times a weight.
    assert float((found - wanted).square().mean().sqrt()) < 1e-3 * float(wanted.square().mean().sqrt())
    assert torch.equal(inputs[0], kept), "inputs are not written on"
    set_engine(block, "simulate")
    with torch.no_grad():
        defined = block(*inputs)
    assert float((found - defined).square().mean().sqrt()) < 2e-3 * float(defined.square().mean().sqrt())


@pytest.mark.parametrize(
    "changes",
    [
        {"up": True},
        {"down": True},
        {"time_embedding_norm": "scale_shift"},
        {"non_linearity": "gelu"},
    ],
    ids=str,
)
def test_other_blocks_go_diffusers_way(
    make: Callable[..., ResnetBlock2D], inputs: tuple, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, taken = make(**changes), ways(monkeypatch)
    with torch.no_grad():
        assert torch.equal(block(*inputs), own_way(block, *inputs))
    assert taken == []


def test_whoever_looks_inside_sees_everything(
    make: Callable[..., ResnetBlock2D], inputs: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, taken, seen = make(), ways(monkeypatch), []
    for name in ("norm1", "nonlinearity", "conv1", "conv2"):
        handle = getattr(block, name).register_forward_hook(lambda *_, name=name: seen.append(name))
        with torch.no_grad():
            out = block(*inputs)
        handle.remove()
        assert seen[-1] == name
        # Each hook is seen, and only what it is on goes the long way.
        assert torch.allclose(out, own_way(block, *inputs), atol=0.05)
    taken.clear()
    tapped = []
    block.conv1.taps["input"] = lambda x: tapped.append(x) or x
    with torch.no_grad():
        block(*inputs)
    assert tapped
    assert tapped[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_nothing_is_called_twice_where_the_loops_say_no(
    make: Callable[..., ResnetBlock2D], inputs: tuple, dtype: torch.dtype
) -> None:
    block, seen = make().to(dtype), []
    x, temb = (each.to(dtype).contiguous() for each in inputs)  # channels first
    block.time_emb_proj.register_forward_hook(lambda *_: seen.append("time"))
    with torch.no_grad():
        found = block(x, temb)
        assert seen == ["time"]
        assert torch.allclose(found, own_way(block, x, temb), atol=0.05)


def test_float_layers_adapters_and_gradients(make: Callable[..., ResnetBlock2D], inputs: tuple) -> None:
    block = make(skip=("conv2",))
    with torch.no_grad():
        assert torch.allclose(block(*inputs), own_way(block, *inputs), atol=0.05)
    x = inputs[0].clone().requires_grad_()
    block = make(skip=("conv1", "conv2", "time_emb_proj"), out_channels=24)
    block(x, inputs[1]).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0


def test_simulate_is_the_definition_in_the_block_too(
    make: Callable[..., ResnetBlock2D], inputs: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, taken = make(), ways(monkeypatch)
    set_engine(block, "simulate")
    with torch.no_grad():
        assert torch.equal(block(*inputs), own_way(block, *inputs))
    assert taken == []


def test_it_is_saved_copied_and_known_as_diffusers_block(make: Callable[..., ResnetBlock2D], inputs: tuple) -> None:
    block = make()
    with torch.no_grad():
        wanted = block(*inputs)
        for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(other(*inputs), wanted)
    assert Architecture({}, frozenset({"ResnetBlock2D"})).is_unit("here", block)
    assert isinstance(block, ResnetBlock2D)
    assert isinstance(block.conv1, QuantConv2d)
