"""The audit of the public models: each is built at full size on the meta device, from its configuration written down here."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from tests.tiny import tiny_conditional_unet
from torch import nn

from halftone.models.attentions import attentions
from halftone.models.concatenation import concatenated_inputs
from halftone.models.example_inputs import example_inputs
from halftone.models.policy import make_plan
from halftone.models.roles import QUANTIZABLE, architecture, matches, table_of
from halftone.models.tape import record
from halftone.recipes import load

FOLDER = Path(__file__).parent / "configurations"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))
UNETS = [name for name in NAMES if name.endswith("-unet")]
CLASSES = {
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "ControlNetModel",
    "UNet2DConditionModel",
    "UNet2DModel",
}


def facts(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


@cache
def public(name: str) -> nn.Module:
    """Return the model without numbers; tests may read it only."""
    config = dict(facts(name)["config"])
    with torch.device("meta"):
        if "_class_name" in config:
            model: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
        else:
            kind = getattr(transformers, config.pop("architectures")[0])
            config.pop("model_type")
            model = kind(transformers.CLIPTextConfig(**config))
    return model.eval().requires_grad_(False)


@cache
def with_classes(class_name: str) -> nn.Module:
    """Return a model with what none of the public ones has: a class embedding of two layers."""
    with torch.device("meta"):
        if class_name == "ControlNetModel":
            tiny = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4}
            kinds = ("DownBlock2D", "CrossAttnDownBlock2D")
            return diffusers.ControlNetModel(**tiny, down_block_types=kinds, class_embed_type="timestep")
        return tiny_conditional_unet(class_embed_type="timestep")


def test_every_class_is_there() -> None:
    assert {type(public(name)).__name__ for name in NAMES} == CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_makes_the_published_model(name: str) -> None:
    assert sum(parameter.numel() for parameter in public(name).parameters()) == facts(name)["parameters"]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_places_every_layer(name: str) -> None:
    model = public(name)
    roles = architecture(model).roles
    assert list(roles) == [path for path, module in model.named_modules() if isinstance(module, QUANTIZABLE)]
    assert not [path for path, role in roles.items() if role.inferred]


# UNet2DModel's table also serves blocks that none of its public models has.
@pytest.mark.parametrize("kind", sorted(CLASSES - {"UNet2DModel"}))
def test_no_glob_of_a_table_is_dead(kind: str) -> None:
    table = table_of(kind)
    assert table is not None
    models = [model for model in map(public, NAMES) if type(model).__name__ == kind]
    if "class_embedding.linear_*" in table[0]:
        models.append(with_classes(kind))
    paths = [(model, path) for model in models for path in architecture(model).roles]
    # The first glob that fits names the role: one behind a wider glob is dead, too.
    used = {next(glob for glob in table[0] if matches(glob, model, path)) for model, path in paths}
    assert set(table[0]) - used == set()


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("-unet", "-controlnet"))])
def test_the_first_attention_looks_at_the_image_and_the_second_at_the_text(name: str) -> None:
    model = public(name)
    found = attentions(model, architecture(model))
    assert {(each.path.rpartition(".")[2], each.role) for each in found} == {
        ("attn1", "attention.self"),
        ("attn2", "attention.cross"),
    }
    assert all(each.holds for each in found)


@pytest.mark.parametrize(
    ("name", "path", "role"),
    [
        ("sdxl-base-unet", "add_embedding.linear_1", "added.embed"),
        ("sdxl-base-unet", "down_blocks.2.attentions.0.transformer_blocks.9.ff.net.0.proj", "ff.up"),
        ("sd-1.5-unet", "down_blocks.0.attentions.0.proj_in", "transformer.in"),
        ("sd-1.5-unet", "up_blocks.3.resnets.2.conv_shortcut", "resnet.shortcut"),
        ("sd-1.5-controlnet", "controlnet_cond_embedding.conv_in", "hint.embed"),
        ("sd-1.5-controlnet", "controlnet_mid_block", "control.out"),
        ("sdxl-vae", "decoder.mid_block.attentions.0.to_q", "attention.self.q"),
        ("sdxl-vae", "post_quant_conv", "latent.in"),
        ("sdxl-text-2", "text_projection", "text.out"),
    ],
)
def test_roles_of_public_models(name: str, path: str, role: str) -> None:
    assert architecture(public(name)).roles[path].name == role


@pytest.mark.parametrize("name", UNETS)
def test_the_shortcuts_of_the_way_up_read_concatenations(name: str) -> None:
    model = public(name)
    found = concatenated_inputs(model, *example_inputs(model, 1))
    roles = architecture(model).roles
    wanted = {p for p, role in roles.items() if role.name == "resnet.shortcut" and p.startswith("up_blocks")}
    # Beside them, embeddings begin with a sine and a cosine.
    assert {path for path in found if roles[path].name == "resnet.shortcut"} == wanted
    assert all(sum(found[path]) == model.get_submodule(path).in_channels and len(found[path]) == 2 for path in wanted)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("recipe", ["q-diffusion-w4a8", "rtn-w8a8"])
def test_a_recipe_plans_every_layer_of_a_public_unet(name: str, recipe: str) -> None:
    model = public(name)
    plan = make_plan(model, architecture(model), load(recipe).policy)
    assert len(plan.quantized()) == len(plan.layers)
    formats = Counter(scheme.weight.format for scheme in plan.quantized().values())
    assert formats["uint8"] == (2 if recipe == "q-diffusion-w4a8" else len(plan.layers))
    assert plan.notes == ()


@pytest.mark.parametrize("name", UNETS)
def test_the_units_of_a_public_unet_are_known_without_its_numbers(name: str) -> None:
    model = public(name)
    tape = record(model, architecture(model).is_unit, *example_inputs(model, 1))
    kinds = Counter(type(model.get_submodule(path)).__name__ for path in tape.units())
    total = Counter(type(module).__name__ for module in model.modules())
    assert all(kinds[kind] == total[kind] for kind in ("ResnetBlock2D", "BasicTransformerBlock"))
