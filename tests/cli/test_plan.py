"""``halftone inspect --plan``: what would become of a model is said before any work, and comes true."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli.conftest import QUICK, Halftone

from halftone.methods.rounding.gptq import Gptq

CONFIGURATIONS = Path(__file__).parents[1] / "models/configurations"


@dataclass(frozen=True)
class Public:
    """Writes the configuration of a public model as it lies beside its weights."""

    folder: Path

    def config(self, name: str, **changes: object) -> Path:
        facts = json.loads((CONFIGURATIONS / f"{name}.json").read_text())
        file = self.folder / f"{name}-{len(list(self.folder.iterdir()))}" / "config.json"
        file.parent.mkdir()
        file.write_text(json.dumps({**facts["config"], **changes}))
        return file


@pytest.fixture
def public(tmp_path: Path) -> Public:
    return Public(tmp_path)


def test_the_plan_comes_true(halftone: Halftone, model: Path, quantized: Path) -> None:
    planned = halftone(
        "inspect", "--plan", model, "--recipe", "rtn-w4a8", "--set", "calibration.samples=8", "--json"
    ).json
    became = halftone("inspect", quantized, "--no-agreement", "--no-keep", "--json").json
    assert planned["sizes"] == became["sizes"]
    same = ("path", "role", "inferred", "kind", "shape", "weight", "input", "bytes")
    assert [[a[key] for key in same] for a in planned["layers"]] == [[b[key] for key in same] for b in became["layers"]]


def test_the_bytes_of_split_layers_are_known(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    little = [
        "calibration.samples=4",
        "steps.reconstruct.iterations=1",
        "steps.reconstruct.batch=2",
        "steps.split.samples=4",
    ]
    recipe = ["--recipe", "q-diffusion-w4a8", *(word for each in little for word in ("--set", each))]
    auto = halftone("inspect", "--plan", model, *recipe, "--json").json
    sure = halftone("inspect", "--plan", model, *recipe, "--set", "steps.split.select=all", "--json").json
    stored = [sum(each["sizes"][part] for part in ("codes", "scales", "zero_points", "float")) for each in (auto, sure)]
    assert stored[1] - stored[0] == auto["if_split"] > 0
    assert sure["if_split"] == 0
    done = halftone(
        "quantize", model, *recipe, "--set", "steps.split.select=all", "--steps", 3, "-o", tmp_path / "out", "--json"
    )
    made = done.json["sizes"]
    assert {key: made[key] for key in sure["sizes"]} == sure["sizes"]
    split = {path for path, facts in done.json["report"]["steps"]["split"]["layers"].items() if facts["split"]}
    assert {layer["path"] for layer in auto["layers"] if layer["parts"]} == split


def test_the_plan_of_sdxl_needs_no_weights(halftone: Halftone, public: Public) -> None:
    found = halftone("inspect", "--plan", public.config("sdxl-base-unet"), "--memory", "4GB", "--json").json
    assert (found["parameters"], found["recipe"], found["budget"]) == (2567463684, "q-diffusion-w4a8", "fast")
    assert (len(found["layers"]), sum(bool(layer["parts"]) for layer in found["layers"])) == (794, 9)
    assert found["sizes"]["codes"] == pytest.approx(found["sizes"]["unquantized"] / 8, rel=0.01)
    assert found["operands"] == {"q uint8": 140, "k uint8": 140, "v uint8": 140, "probs uint8": 140}
    memory, (low, high) = found["memory"], found["seconds"]["total"]
    assert memory["activations"] - memory["spilled"] == 4e9
    assert memory["weights"] > 4 * found["parameters"]
    assert 0 < low < high
    plan = ("inspect", "--plan", public.config("sdxl-base-unet"), "--keep-as", "bfloat16", "--json")
    assert halftone(*plan).json["memory"]["activations"] == memory["activations"] / 2
    # What a large denoiser has of the recipe at this budget.
    assert list(found["seconds"]["steps"]) == ["record", "split", "weights", "gptq", "activations"]


def test_a_plan_for_readers(halftone: Halftone, public: Public) -> None:
    folder = public.config("sd-1.5-unet", sample_size=8).parent
    shown = halftone("inspect", "--plan", folder, "--recipe", "rtn-w8a8", "--budget", "demo")
    assert shown.code == 0
    for words in (
        "859,520,964 parameters",
        "attention.cross.k",
        "282 of 282 layers quantized; 0 roles inferred",
        "Size ",
        "Memory ",
    ):
        assert words in shown.out
    assert "about" in shown.out.split("Time ")[1]
    assert "an estimate" in shown.out
    assert "down_blocks.0.resnets.0.conv1" not in shown.out
    every = halftone("inspect", "--plan", folder, "--recipe", "rtn-w8a8", "--budget", "demo", "--layers")
    assert "320x320x3x3" in every.out


def test_what_stays_float_has_a_reason(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\ntitle: Mine\npaper: none\npolicy:\n"
        '  - {roles: "resnet.*", weight: {format: uint4, granularity: channel}}\n'
        "  - {roles: resnet.time, keep: true}\n"
        "steps:\n  weights: {method: rounding/nearest}\n"
    )
    found = halftone("inspect", "--plan", model, "--recipe", recipe, "--json").json
    reasons = {layer["role"]: layer["reason"] for layer in found["layers"]}
    assert reasons["resnet.conv1"] == ""
    assert reasons["resnet.time"] == "the rule for 'resnet.time' keeps it"
    assert reasons["conv_in"] == "no rule gives its role a weight format"
    shown = halftone("inspect", "--plan", model, "--recipe", recipe).out
    assert "Float because the rule for 'resnet.time' keeps it" in shown


def test_no_time_is_made_up(halftone: Halftone, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gptq, "effort", lambda self, job: None)
    assert "not known: nobody has counted gptq" in halftone("inspect", "--plan", model).out
    assert halftone("inspect", "--plan", model, "--json").json["seconds"] is None


def test_a_model_that_cannot_be_called_still_has_a_plan(halftone: Halftone, public: Public) -> None:
    unheard_of = public.config("sd-1.5-unet", addition_embed_type="text")
    found = halftone("inspect", "--plan", unheard_of, "--recipe", "rtn-w8a8", "--json").json
    assert {"conv_in", "conv_out"} <= {layer["role"] for layer in found["layers"]}
    assert (found["memory"], found["seconds"]) == (None, None)
    assert "are not known: UNet2DConditionModel" in found["notes"][-1]


@pytest.mark.parametrize(
    ("name", "macs", "once"),
    [
        ("sd-1.5-vae", 1.24e12, True),  # what decoding 512 x 512 pixels is known to take
        ("sd-1.5-text", 6.6e9, True),  # 85 million weights that are multiplied, 77 tokens, and attention
        ("sd-1.5-controlnet", 1.2e11, False),  # a third of the U-Net's weights
    ],
)
def test_other_components_have_memory_and_time_as_well(
    halftone: Halftone, tmp_path: Path, public: Public, name: str, macs: float, once: bool
) -> None:
    config = public.config(name)
    pipeline = tmp_path / "pipeline"
    component = {"vae": "vae", "text": "text_encoder", "controlnet": "controlnet"}[name.split("-")[-1]]
    kinds = {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "controlnet": ["diffusers", "ControlNetModel"],
    }
    classes = {"unet": ["diffusers", "UNet2DConditionModel"], component: kinds[component]}
    index = {"_class_name": "StableDiffusionControlNetPipeline", "_diffusers_version": "0.36.0"}
    (pipeline / "unet").mkdir(parents=True)
    (pipeline / "model_index.json").write_text(json.dumps(index | classes))
    (pipeline / "unet/config.json").write_bytes(public.config("sd-1.5-unet").read_bytes())
    (pipeline / component).mkdir()
    (pipeline / component / "config.json").write_bytes(config.read_bytes())
    plan = ("inspect", "--plan", pipeline, "--component", component, "--recipe", "rtn-w8a8", "--json")
    done = halftone(*plan, "--set", "calibration.samples=50")
    assert done.code == 0, done.err
    found = done.json
    assert found["memory"]["held"] > 4 * found["parameters"]
    assert len(found["seconds"]["steps"]) == len(found["work"])
    assert any("draws pictures" in note for note in found["notes"])
    # 50 samples are one image's: one call, or three trajectories up to the last of the twenty calls chosen; and one to count.
    calls = 2 if once else 3 * 48 + 1
    assert found["work"]["record"]["macs"] == pytest.approx(calls * macs, rel=0.25)


def test_a_plan_with_a_table_from_outside(halftone: Halftone, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text('[roles]\n"conv_in" = "conv_in"\n"conv_out" = "conv_out"\n"*" = "layer"\n')
    found = halftone("inspect", "--plan", model, "--recipe", "rtn-w8a8", "--roles", table, "--json").json
    assert {layer["role"] for layer in found["layers"]} == {"conv_in", "layer", "conv_out"}
    table.write_text("[roles")
    refused(halftone, ["a TOML file"], "--plan", model, "--roles", table)


def refused(halftone: Halftone, words: list[str], *arguments: object) -> None:
    done = halftone("inspect", *arguments)
    assert (done.code, done.out) == (2, "")
    for each in words:
        assert each in done.err


def test_wrong_requests(halftone: Halftone, model: Path, quantized: Path, public: Public) -> None:
    refused(halftone, ["a float model", f"halftone inspect {quantized}"], "--plan", quantized)
    refused(halftone, ["a float model"], "--plan", quantized / "unet")
    refused(halftone, ["Did you mean 'rtn-w8a8'"], "--plan", model, "--recipe", "rtn-w8a9")
    refused(halftone, ["budget"], "--plan", model, "--budget", "huge")
    refused(halftone, ["--plan beside it"], model, "--recipe", QUICK[1])
    refused(halftone, ["--layers", "--plan beside it"], model, "--layers")
    refused(halftone, ["beside --plan", "of the CPU"], "--plan", model, "--device", "cuda")
    refused(halftone, ["beside --plan"], "--plan", model, "--engine", "simulate")
    refused(halftone, ["on the hub"], "--plan", "owner/name")
    refused(halftone, ["model_index.json or config.json"], "--plan", CONFIGURATIONS)
    refused(halftone, ["a pipeline folder or a hub id"], "--plan", "/nowhere/at/all")
    unknown = public.config("sd-1.5-unet", _class_name="UNet2DConditionalModel")
    refused(halftone, ["a model class of diffusers", "Did you mean 'UNet2DConditionModel'"], "--plan", unknown)
    refused(halftone, ["a model class of diffusers"], "--plan", public.config("sd-1.5-text"))
    refused(halftone, ["a configuration of AutoencoderKL"], "--plan", public.config("sdxl-vae", block_out_channels=[7]))
