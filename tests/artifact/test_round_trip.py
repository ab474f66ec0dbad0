"""Save, load, save: identical bytes, identical outputs, exact scales in any dtype."""

import copy
import filecmp
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.quantizers.base import DiffusersQuantizer
from tests.stable_diffusion import PROMPTS, tiny_stable_diffusion
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import halftone
from halftone.artifact import attach, described, load_pipeline, save_pipeline, sizes
from halftone.artifact.accounting import held
from halftone.foundation.errors import ConfigError, OutputError
from halftone.models.denoiser import named_denoiser
from halftone.nn import AttentionOperands, QuantConv2d, QuantizedLayer
from halftone.nn.layers import quantized_layers
from halftone.zoo.fashion_unet import build

Call = Callable[[nn.Module], torch.Tensor]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def assert_same(one: Path, other: Path) -> None:
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(other) for file in other.rglob("*") if file.is_file())
    for file in files:
        assert filecmp.cmp(one / file, other / file, shallow=False), file


def test_save_load_save(saved: Path, tmp_path: Path) -> None:
    assert_same(saved, save_pipeline(load_pipeline(saved), tmp_path / "again"))


def test_diffusers_own_functions_write_the_same_weights(
    pipe: DDIMPipeline, saved: Path, tmp_path: Path, call: Call
) -> None:
    pipe.save_pretrained(tmp_path / "theirs")
    assert filecmp.cmp(tmp_path / "theirs" / WEIGHTS, saved / WEIGHTS, shallow=False)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert torch.equal(call(loaded.unet), call(pipe.unet))
    assert described(loaded.unet) == described(pipe.unet)


def test_outputs_are_bit_exact(pipe: DDIMPipeline, saved: Path, call: Call) -> None:
    loaded = load_pipeline(saved)
    assert torch.equal(call(loaded.unet), call(pipe.unet))
    assert call(loaded.unet).std() > 0


def test_the_loaded_model_holds_codes_only(pipe: DDIMPipeline, saved: Path) -> None:
    unet = load_pipeline(saved).unet
    layers = dict(quantized_layers(unet))
    assert layers.keys() == dict(quantized_layers(pipe.unet)).keys()
    assert all(layer.weight.dtype == torch.uint8 and layer.engine == "auto" for layer in layers.values())
    assert type(unet.conv_in) is nn.Conv2d
    split = [layer for layer in layers.values() if len(layer.segments) == 2]
    assert split and all(layer.input_scale.shape == (2,) for layer in split)
    assert any(isinstance(module, AttentionOperands) and module.active for module in unet.modules())


def test_bfloat16_keeps_scales_exact(pipe: DDIMPipeline, saved: Path, tmp_path: Path, call: Call) -> None:
    loaded = load_pipeline(saved, dtype=torch.bfloat16)
    assert loaded.unet.dtype == torch.bfloat16 == loaded.unet.conv_in.weight.dtype
    before = pipe.unet.state_dict()
    for name, tensor in loaded.unet.state_dict().items():
        if name.endswith(("_scale", "_zero_point")) or before[name].dtype == torch.uint8:
            assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
        else:
            assert tensor.dtype == torch.bfloat16, name
    assert call(loaded.unet).dtype == torch.bfloat16
    assert (call(loaded.unet).float() - call(pipe.unet)).abs().max() < 0.1 * call(pipe.unet).abs().max()
    # The kept parts are bfloat16 now, and that is what is saved and vouched for.
    again = load_pipeline(save_pipeline(loaded, tmp_path / "bf16"), dtype=torch.bfloat16)
    assert torch.equal(call(again.unet), call(loaded.unet))


@pytest.mark.parametrize("loaded", [False, True])
def test_casts_concern_what_stayed_float(unet: UNet2DModel, saved: Path, loaded: bool, call: Call) -> None:
    if loaded:
        unet = load_pipeline(saved).unet
    before, out = {name: value.clone() for name, value in unet.state_dict().items()}, call(unet)
    for cast in (lambda: unet.to(torch.bfloat16), lambda: unet.half(), lambda: unet.to("cpu", torch.bfloat16)):
        cast()
        assert unet.dtype in (torch.bfloat16, torch.float16)
        for name, tensor in unet.state_dict().items():
            if name.endswith(("_scale", "_zero_point")) or before[name].dtype == torch.uint8:
                assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
            else:
                assert tensor.dtype == unet.dtype, name
    assert (call(unet).float() - out).abs().max() < 0.1 * out.abs().max()
    unet.float()
    assert unet.dtype == torch.float32


def test_loading_never_makes_float_weights(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []
    allocate = QuantizedLayer.allocate

    def watched(self: QuantizedLayer, *args: object) -> None:
        assert self.weight.is_meta
        allocate(self, *args)
        made.append(self.weight.dtype)

    monkeypatch.setattr(QuantizedLayer, "allocate", watched)
    load_pipeline(saved)
    assert made and set(made) == {torch.uint8}


def test_saving_over_the_folder_it_came_from(saved: Path, call: Call) -> None:
    loaded = load_pipeline(saved)
    before = call(loaded.unet)
    loaded.save_pretrained(saved)  # in place: the tensors must not be windows on the file
    assert torch.equal(call(load_pipeline(saved).unet), before)


def test_saving_refuses_and_replaces(pipe: DDIMPipeline, saved: Path) -> None:
    with pytest.raises(OutputError, match="overwrite"):
        save_pipeline(pipe, saved)
    save_pipeline(pipe, saved, overwrite=True)
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_sharded(pipe: DDIMPipeline, tmp_path: Path, call: Call) -> None:
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards/unet").glob("*.safetensors"))) > 1
    assert torch.equal(call(load_pipeline(tmp_path / "shards").unet), call(pipe.unet))


def test_copies_save_themselves(unet: UNet2DModel, tmp_path: Path) -> None:
    for twin in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        twin.conv_in.bias.data += 1
        twin.save_pretrained(tmp_path / "twin")
        loaded = UNet2DModel.from_pretrained(tmp_path / "twin")
        assert torch.equal(loaded.conv_in.bias, twin.conv_in.bias)
        assert described(loaded).checksum != described(unet).checksum


def test_a_change_after_attach_is_described_when_saved(unet: UNet2DModel, tmp_path: Path, call: Call) -> None:
    name, layer = next((n, m) for n, m in quantized_layers(unet) if isinstance(m, QuantConv2d))
    layer.release(layer.dequantized_weight())
    unet.save_pretrained(tmp_path / "changed")
    loaded = UNet2DModel.from_pretrained(tmp_path / "changed")
    assert name in described(loaded).ignore and name not in described(loaded).schemes
    assert torch.equal(call(loaded), call(unet))


def test_a_site_without_a_scale_is_float(unet: UNet2DModel, tmp_path: Path, call: Call) -> None:
    name, layer = next(quantized_layers(unet))
    layer.set_site_affine("input", None)
    unet.save_pretrained(tmp_path / "weight_only")
    loaded = UNet2DModel.from_pretrained(tmp_path / "weight_only")
    assert described(loaded).schemes[name].input is None
    assert torch.equal(call(loaded), call(unet))


@pytest.mark.skipif(not hasattr(DiffusersQuantizer, "get_state_dict_and_metadata"), reason="diffusers does not ask")
def test_pickle_is_not_written(unet: UNet2DModel, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="safe_serialization"):
        unet.save_pretrained(tmp_path / "pickled", safe_serialization=False)


def test_attach_refuses(plain_unet: UNet2DModel, unet: UNet2DModel) -> None:
    with pytest.raises(OutputError, match="at least one quantized layer"):
        attach(
            UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)), {}
        )
    with pytest.raises(ConfigError, match="a model of diffusers"):
        attach(nn.Linear(2, 2), {})
    next(quantized_layers(unet))[1].taps["input"] = lambda x: x
    with pytest.raises(OutputError, match="calibrated"):
        attach(unet, {})


def test_a_float_model_is_not_quantized_by_the_config(unet: UNet2DModel, tmp_path: Path) -> None:
    UNet2DModel.from_config({k: v for k, v in unet.config.items() if k != "quantization_config"}).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="pre-quantized"):
        UNet2DModel.from_pretrained(tmp_path, quantization_config=unet.config.quantization_config)


def test_sizes(pipe: DDIMPipeline, saved: Path) -> None:
    counted = sizes(pipe.unet, saved / "unet")
    stored = sum(t.numel() * t.element_size() for t in pipe.unet.state_dict().values())
    assert stored == sum(counted[key] for key in ("codes", "scales", "zero_points", "float"))
    assert counted["minimum"] <= stored < counted["file"] == (saved / WEIGHTS).stat().st_size
    floats = UNet2DModel.from_config({k: v for k, v in pipe.unet.config.items() if k != "quantization_config"})
    assert counted["unquantized"] == 4 * sum(p.numel() for p in floats.parameters())


def test_a_file_is_near_the_fewest_bytes(quantized: Callable[[nn.Module], None], tmp_path: Path) -> None:
    unet = build().unet
    quantized(unet)
    attach(unet, {})
    unet.save_pretrained(tmp_path)
    counted = sizes(unet, tmp_path)
    assert counted["file"] <= 1.05 * counted["minimum"] < 0.2 * counted["unquantized"]


def test_denoiser(pipe: DDIMPipeline) -> None:
    assert named_denoiser(pipe) == ("unet", pipe.unet)

    class Without(DiffusionPipeline):
        def __init__(self, scheduler: DDIMScheduler) -> None:
            super().__init__()
            self.register_modules(scheduler=scheduler)

    with pytest.raises(ConfigError, match="unet"):
        named_denoiser(Without(DDIMScheduler()))


@pytest.mark.parametrize("early", [True, False])
def test_registration_before_and_after_diffusers(saved: Path, early: bool) -> None:
    order = [
        "import diffusers; diffusers.UNet2DModel",
        "from halftone.artifact import register; register(); register()",
    ]
    code = (
        "\n".join(order[::-1] if early else order)
        + f"""
import sys
print("torch" in sys.modules)
from diffusers import UNet2DModel
print(UNet2DModel.from_pretrained({str(saved / "unet")!r}).quantization_method.value)"""
    )
    if early:
        code = code.replace("import diffusers", 'import sys; assert "torch" not in sys.modules; import diffusers')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1:] == ["halftone"], done.stderr


_PEAK = """
import sys
import halftone
from halftone.artifact import load_pipeline

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

load_pipeline(sys.argv[2])  # whatever loading imports, and its first allocations
before = peak()
load_pipeline(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_peak_while_loading_is_the_artifact_itself(pipe: DDIMPipeline, tmp_path: Path) -> None:
    """No float copy, and no mapped file that stays beside the codes: at most 1.3 times the bytes on disk."""
    small = save_pipeline(pipe, tmp_path / "small")
    wide = UNet2DModel(
        in_channels=1, out_channels=1, block_out_channels=(640, 1280), layers_per_block=1, norm_num_groups=32,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, sample_size=8,
    )  # fmt: skip
    large = DDIMPipeline(wide, pipe.scheduler)
    halftone.quantize(large, "rtn-w8a32", steps=1, overrides=["calibration.samples=1", "calibration.batch=1"])
    assert_no_float_copy(save_pipeline(large, tmp_path / "large"), small, at_least=60e6)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_peak_of_a_whole_pipeline_is_the_artifact_and_what_stayed_float(tmp_path: Path) -> None:
    """Packed 4-bit codes of a U-Net, 8-bit ones of a text encoder, which transformers loads, and an autoencoder in float."""
    pipe = tiny_stable_diffusion(tmp_path / "tokenizer")
    kept = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    ids = {key: getattr(pipe.text_encoder.config, key) for key in kept}
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=5, num_attention_heads=12, **ids)
    pipe.text_encoder = CLIPTextModel(text).eval()
    pipe.unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(320, 640), layers_per_block=1, cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    pipe.vae = AutoencoderKL(
        block_out_channels=(64, 128, 256), norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    ).eval()  # fmt: skip
    small = save_pipeline(quantized_pipeline(tiny_stable_diffusion(tmp_path / "tokenizer")), tmp_path / "small")
    large = save_pipeline(quantized_pipeline(pipe), tmp_path / "large")
    assert_no_float_copy(large, small, at_least=60e6)


def quantized_pipeline(pipe: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Return ``pipe`` with a U-Net of 4 and a text encoder of 8 bits."""
    given = {"steps": 1, "overrides": ["calibration.samples=1", "calibration.batch=1"]}
    halftone.quantize(pipe, "rtn-w4a32", each={"prompt": PROMPTS}, **given)
    halftone.quantize(pipe, "rtn-w8a32", each={"prompt": PROMPTS}, component="text_encoder", **given)
    return pipe


def assert_no_float_copy(folder: Path, small: Path, at_least: float) -> None:
    """Load ``small``, then ``folder``, of the same classes, in a process of its own, and look at its peak."""
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert size > at_least
    command = [sys.executable, "-c", _PEAK, str(folder), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.3 * size


def test_what_a_model_holds_is_its_codes_and_what_kernels_make_of_them(pipe: DDIMPipeline, saved: Path) -> None:
    ready, packed, floats = load_pipeline(saved, weights="ready"), load_pipeline(saved, weights="packed"), build()
    assert held(floats.unet) == sum(p.numel() * p.element_size() for p in floats.unet.parameters())
    weights = sum(torch.Size(layer.weight_shape).numel() for _, layer in quantized_layers(ready.unet))
    stored = sum(t.numel() * t.element_size() for t in pipe.unet.state_dict().values())
    assert stored <= held(packed.unet) <= held(ready.unet) and held(ready.unet) >= weights, "a byte for each at least"
    halftone.set_engine(ready.unet, "simulate")
    assert held(ready.unet) >= 4 * weights, "the definition multiplies float32"


def test_weights_alone_in_four_bits_are_held_packed_or_in_float(tmp_path: Path) -> None:
    pipe = build()
    how = {"steps": 1, "overrides": ["calibration.samples=1"]}
    folder = save_pipeline(halftone.quantize(pipe, "rtn-w4a32", **how).pipe, tmp_path / "out")
    x, outputs = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)), []
    bits = {"packed": 4, "ready": 36}
    for weights, least in bits.items():
        unet = load_pipeline(folder, weights=weights).unet
        outputs.append(unet(x, 7).sample)
        counted = sum(torch.Size(layer.weight_shape).numel() for _, layer in quantized_layers(unet)) * least / 8
        assert counted <= held(unet) <= 1.2 * counted
        again = load_pipeline(save_pipeline(pipe := load_pipeline(folder, weights=weights), tmp_path / weights))
        assert torch.equal(again.unet(x, 7).sample, pipe.unet(x, 7).sample), "codes come back from the kernel"
    assert torch.equal(*outputs)
