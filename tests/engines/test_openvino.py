"""The OpenVINO engine equals ``simulate``, multiplies integers, and says no where it must."""

import copy
import platform
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from tests.engines.conftest import A8, NETWORK, W4, conditional_unet, far, quantized, run, unet
from tests.nn.test_layers import CONVS, SCHEMES, data, hold, layer
from tests.tiny import pipeline
from torch import nn

from halftone.engines import running, session, set_engine
from halftone.engines.select import give
from halftone.formats import Affine
from halftone.foundation.errors import ConfigError, KernelError
from halftone.models.example_inputs import example_inputs
from halftone.nn import QuantConv2d, QuantLinear, Scheme
from halftone.nn.attention import install_operands
from halftone.nn.running import set_weights
from halftone.quant import QuantSpec

pytest.importorskip("openvino", reason="needs the package openvino: pip install 'openvino>=2025.0'")

EXACT = 1e-6  # of the largest output, of one layer in f32: sums in another order
ROUNDED = 1e-2  # in bf16: outputs have 8 bits
NETWORK_BF16 = 0.25  # as far as simulate in bf16 is from simulate in float32 on them

INTEGERS = {"u8", "i8"}
X86 = platform.machine() in ("x86_64", "AMD64")  # elsewhere OpenVINO may multiply in float


def kinds() -> list[Any]:
    return [
        pytest.param(kind, scheme, id=f"{kind}-{name}")
        for kind in ("linear", *CONVS)
        for name, scheme in SCHEMES.items()
        if not (scheme.segments and kind == "grouped")
    ]


@pytest.mark.parametrize(("kind", "scheme"), kinds())
def test_a_layer_equals_the_definition(kind: str, scheme: Scheme) -> None:
    one = layer(kind)
    hold(one, scheme)
    network, x = nn.Sequential(one), data(kind)
    wanted = run(network, "simulate", x)
    largest = float(wanted.abs().max())
    assert float((run(network, "openvino", x, precision="f32") - wanted).abs().max()) <= EXACT * largest
    if scheme.input is not None and X86:
        assert set(session(network).products((x,), {}).values()) <= INTEGERS
        assert list(session(network).products((x,), {})) == ["0"]
    assert float((run(network, "openvino", x, precision="bf16") - wanted).abs().max()) <= ROUNDED * largest


@settings(max_examples=12)
@given(st.data())
def test_any_zero_points_segments_and_widths(draw: st.DataObject) -> None:
    numbers = torch.Generator().manual_seed(draw.draw(st.integers(0, 2**20)))
    segments = tuple(draw.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    width, out = sum(segments), draw.draw(st.integers(1, 40))
    bits = draw.draw(st.sampled_from([2, 3, 4, 8]))
    inputs = QuantSpec(draw.draw(st.sampled_from(["uint8", "uint6", "int8", "uint16"])))
    scheme = Scheme(QuantSpec(f"uint{bits}", "channel"), inputs, segments if len(segments) > 1 else ())
    one = QuantConv2d(width, out, 3, padding=1) if draw.draw(st.booleans()) else QuantLinear(width, out)
    codes = torch.randint(0, 2**bits, one.weight_shape, generator=numbers, dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (len(segments), out), generator=numbers).float()
    one.hold(codes, Affine(0.01 + torch.rand(len(segments), out, generator=numbers), zero), scheme)
    grid = inputs.number_format
    points = torch.randint(int(grid.low), int(grid.high) + 1, (len(segments),), generator=numbers).float()
    affine = Affine(0.01 + torch.rand(len(segments), generator=numbers), points)
    one.set_site_affine("input", affine)
    # Off the ties, where the two ways of rounding agree, and past both ends.
    shape = (2, width, 5, 4) if isinstance(one, QuantConv2d) else (2, 5, width)
    wanted = torch.randint(int(grid.low) - 9, int(grid.high) + 9, shape, generator=numbers)
    wanted = wanted + 0.8 * torch.rand(shape, generator=numbers) - 0.4
    axis = 1 if isinstance(one, QuantConv2d) else -1
    parts = wanted.split(list(segments), dim=axis)
    x = torch.cat([(part - affine.zero_point[n]) * affine.scale[n] for n, part in enumerate(parts)], dim=axis)
    network = nn.Sequential(one)
    defined = run(network, "simulate", x)
    far_off = (run(network, "openvino", x, precision="f32") - defined).abs().max()
    # In 16 bits float32 itself is not sure of the code.
    assert float(far_off) <= (EXACT if grid.bits <= 8 else 1e-4) * float(defined.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_that_are_float_stay_float(bits: int) -> None:
    # Of a width that OpenVINO's own rounding of inputs takes.
    one = QuantLinear(256, 64)
    hold(one, Scheme(QuantSpec(f"uint{bits}", "channel", "symmetric")))
    network, x = nn.Sequential(one), torch.randn(16, 256)
    wanted = run(network, "simulate", x)
    got = run(network, "openvino", x, precision="f32")
    assert float((got - wanted).abs().max()) <= EXACT * float(wanted.abs().max())
    assert session(network).products((x,), {}) == {"0": "f32"}


def test_weights_that_need_a_ninth_bit_are_right() -> None:
    one = QuantLinear(16, 8)
    codes = torch.randint(0, 256, (8, 16), dtype=torch.uint8)
    one.hold(codes, Affine(torch.full((1, 8), 0.01), torch.zeros(1, 8)), Scheme(QuantSpec("uint8", "channel"), A8))
    one.set_site_affine("input", A8.affine(torch.tensor([-3.0]), torch.tensor([3.0])))
    network, x = nn.Sequential(one), torch.randn(4, 16)
    wanted = run(network, "simulate", x)
    assert torch.allclose(run(network, "openvino", x, precision="f32"), wanted, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 1, 8, 8), (2, 1, 6, 10)])
def test_a_network_equals_the_definition(shape: tuple[int, ...]) -> None:
    network, x = unet(block_out_channels=(16, 32)), torch.randn(shape)
    wanted = run(network, "simulate", x, 10).sample
    assert far(run(network, "openvino", x, 10, precision="f32").sample, wanted) <= NETWORK
    assert far(run(network, "openvino", x, 10, precision="bf16").sample, wanted) <= NETWORK_BF16
    products = session(network).products((x, 10), {})
    assert len(products) > 20 and (not X86 or set(products.values()) <= INTEGERS)


def test_wide_edges_are_float_and_the_rest_integers() -> None:
    network = unet(block_out_channels=(16, 32))
    for path in ("conv_in", "conv_out"):
        one = network.get_submodule(path)
        hold_wide(one)
    x = torch.randn(1, 1, 8, 8)
    assert (
        far(run(network, "openvino", x, 10, precision="f32").sample, run(network, "simulate", x, 10).sample) <= NETWORK
    )
    set_engine(network, "openvino")
    products = session(network).products((x, 10), {})
    floats = {path for path, element in products.items() if element not in INTEGERS}
    assert floats == {"conv_in", "conv_out"} if X86 else floats


def hold_wide(one: Any) -> None:
    wide = QuantSpec("uint16")
    one.hold(one.codes(), one.weight_affine(), Scheme(one.scheme.weight, wide))
    one.set_site_affine("input", wide.affine(torch.tensor([-6.0]), torch.tensor([6.0])))


def test_conditions_and_residuals_pass_through() -> None:
    network = conditional_unet()
    args, kwargs = example_inputs(network, 2)
    wanted = run(network, "simulate", *args, **kwargs).sample
    assert far(run(network, "openvino", *args, precision="f32", **kwargs).sample, wanted) <= NETWORK
    shapes = [(2, 8, 8, 8), (2, 8, 8, 8), (2, 8, 4, 4), (2, 16, 4, 4)]
    kwargs["down_block_additional_residuals"] = tuple(torch.randn(shape) for shape in shapes)
    kwargs["mid_block_additional_residual"] = torch.randn(2, 16, 4, 4)
    steered = run(network, "simulate", *args, **kwargs).sample
    assert far(steered, wanted) > 2 * NETWORK
    assert far(run(network, "openvino", *args, precision="f32", **kwargs).sample, steered) <= NETWORK
    kwargs["return_dict"] = False
    (only,) = run(network, "openvino", *args, precision="f32", **kwargs)
    assert far(only, steered) <= NETWORK


@pytest.mark.parametrize("zero", ["asymmetric", "symmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_attention_operands(zero: Any, dtype: torch.dtype) -> None:
    network = unet(block_out_channels=(16, 32))
    middle = QuantSpec("uint8", zero=zero)
    specs = {"q": middle, "k": middle, "v": middle, "probs": QuantSpec("uint8", zero="none")}
    sites = 0
    for module in list(network.modules()):
        if type(module).__name__ == "Attention":
            operands = install_operands(module, specs)
            for site, spec in specs.items():
                low = 0.0 if site == "probs" else -2.0
                operands.set_site_affine(site, spec.affine(torch.tensor([low]), torch.tensor([2.0 + low / 2])))
                sites += 1
    network, x = network.to(dtype), torch.randn(2, 1, 8, 8, dtype=dtype)
    wanted = run(network, "simulate", x, 10).sample
    bound = NETWORK if dtype == torch.float32 else NETWORK_BF16
    assert sites >= 8 and far(run(network, "openvino", x, 10, precision="f32").sample, wanted) <= bound


def test_a_network_in_bfloat16() -> None:
    network, x = unet(block_out_channels=(16, 32)).to(torch.bfloat16), torch.randn(2, 1, 8, 8, dtype=torch.bfloat16)
    run(network, "torch", x, 10)  # whose attention has loops of its own
    wanted = run(network, "simulate", x, 10).sample
    got = run(network, "openvino", x, 10).sample
    assert got.dtype == torch.bfloat16 and far(got, wanted) <= NETWORK_BF16


def test_kept_tokens_have_their_stored_outputs() -> None:
    one = quantized(nn.Sequential(nn.Linear(8, 6)), Scheme(W4, QuantSpec("uint8", keep=1)))
    one[0].keep_tokens(torch.randn(1, 8), torch.randn(1, 6))
    x = torch.randn(2, 5, 8)
    wanted = run(one, "simulate", x)
    assert torch.allclose(run(one, "openvino", x, precision="f32"), wanted, atol=1e-5)


def test_one_graph_serves_all_sizes_and_few_stay_compiled() -> None:
    network = unet()
    set_engine(network, "openvino", precision="f32", shapes=2)
    with torch.no_grad():
        for shape in ((1, 1, 8, 8), (2, 1, 8, 8), (1, 1, 12, 8), (1, 1, 8, 8)):
            x = torch.randn(shape)
            got = network(x, 5).sample
            with torch.no_grad():
                other = copy.deepcopy(network)
                assert far(got, run(other, "simulate", x, 5).sample) <= NETWORK
    runs: Any = session(network)
    assert len(runs._graphs) == 1 and len(runs._compiled) == 2


def test_timesteps_in_every_form_are_one_kind_of_call() -> None:
    network, x = unet(), torch.randn(2, 1, 8, 8)
    set_engine(network, "openvino", precision="f32")
    with torch.no_grad():
        results = [network(x, step).sample for step in (7, torch.tensor(7), torch.tensor([7]))]
    assert all(torch.equal(each, results[0]) for each in results)
    with torch.no_grad():
        each_its_own = network(x, torch.tensor([7, 900])).sample
    assert torch.allclose(each_its_own[0], results[0][0], atol=1e-4) and not torch.equal(each_its_own[1], results[0][1])
    assert len(session(network)._graphs) == 1  # type: ignore[union-attr]


def test_new_numbers_make_a_new_graph() -> None:
    network, x = unet(), torch.randn(1, 1, 8, 8)
    before = run(network, "openvino", x, 5, precision="f32").sample
    with torch.no_grad():
        network.conv_out.bias.add_(1.0)
        moved = network(x, 5).sample
    assert torch.allclose(moved, before + 1.0, atol=1e-4)
    one = network.mid_block.resnets[0].conv1
    one.set_site_affine("input", A8.affine(torch.tensor([-0.1]), torch.tensor([0.1])))
    with torch.no_grad():
        assert not torch.allclose(network(x, 5).sample, moved, atol=1e-4)


def test_adapters_are_part_of_the_graph() -> None:
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'peft>=0.17'")
    network = conditional_unet()
    args, kwargs = example_inputs(network, 1)
    plain = run(network, "openvino", *args, precision="f32", **kwargs).sample
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with torch.no_grad():
        adapted = network(*args, **kwargs).sample
    assert far(adapted, plain) > 2 * NETWORK
    assert far(adapted, run(network, "simulate", *args, **kwargs).sample) <= NETWORK


@pytest.mark.parametrize("weights", ["ready", "packed"])
def test_codes_that_kernels_have_taken_are_found(weights: str) -> None:
    network, x = unet(block_out_channels=(16, 32)), torch.randn(1, 1, 8, 8)
    set_weights(network, weights)  # as loading does
    wanted = run(network, "simulate", x, 5).sample
    run(network, "torch", x, 5)
    assert far(run(network, "openvino", x, 5, precision="f32").sample, wanted) <= NETWORK
    runs = session(network)
    with torch.no_grad():
        give(network, "openvino", None)
        network(x, 5)  # the layers by themselves, in between
        give(network, "openvino", runs)
        graphs = list(runs._graphs.values())  # type: ignore[union-attr]
        assert far(network(x, 5).sample, wanted) <= NETWORK
        assert [*runs._graphs.values()] == graphs  # type: ignore[union-attr] # nothing has changed
        (only,) = network(x, 5, return_dict=False)  # another graph, of the same codes
        assert far(only, wanted) <= NETWORK and far(network(x, 5).sample, wanted) <= NETWORK


def test_another_engine_takes_over() -> None:
    network, x = unet(), torch.randn(1, 1, 8, 8)
    run(network, "openvino", x, 5)
    assert running(network) == "openvino"
    set_engine(network, "simulate")
    assert running(network) is None and session(network) is None and "forward" not in network.__dict__


def test_a_pipeline_does_not_notice() -> None:
    pipe = pipeline(unet())
    pipe.set_progress_bar_config(disable=True)

    def draw() -> Any:
        return pipe(2, generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images

    wanted = draw()
    set_engine(pipe.unet, "openvino", precision="f32")
    assert abs(draw() - wanted).mean() <= NETWORK


def test_what_it_refuses() -> None:
    network, x = unet(), torch.randn(1, 1, 8, 8)
    with pytest.raises(ConfigError, match="precision"):
        set_engine(network, "openvino", precision="f12")
    with pytest.raises(ConfigError, match="at least 1"):
        set_engine(network, "openvino", shapes=0)
    with pytest.raises(ConfigError, match="no options"):
        set_engine(network, "torch", precision="f32")
    with pytest.raises(ConfigError, match="quantized layers"):
        set_engine(nn.Sequential(nn.Linear(2, 2)), "openvino")
    autoencoder = quantized(AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=1))
    with pytest.raises(ConfigError, match="pipe.vae.decoder"):
        set_engine(autoencoder, "openvino")
    set_engine(network, "openvino")
    with pytest.raises(KernelError, match="gradients"):
        network(x.requires_grad_(), 5)
    network.conv_in.taps = {"input": lambda value: value}
    with torch.no_grad(), pytest.raises(KernelError, match="calibrated"):
        network(x, 5)


def test_a_network_that_cannot_be_converted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(self.one(x))

    with torch.no_grad(), pytest.raises(KernelError, match="OpenVINO can convert.*--engine torch"):
        network = quantized(Odd())
        set_engine(network, "openvino")
        network(torch.randn(2, 4))
