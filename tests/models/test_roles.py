"""Every linear and convolution of every architecture has a role; one without is an error that names it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from tests.tiny import tiny_conditional_unet
from torch import nn

from halftone.foundation.errors import MatchError
from halftone.models import roles
from halftone.models.roles import QUANTIZABLE, architecture, table_of


def test_the_audit_leaves_no_layer_out(any_tiny: nn.Module) -> None:
    roles = architecture(any_tiny).roles
    assert list(roles) == [path for path, module in any_tiny.named_modules() if isinstance(module, QUANTIZABLE)]
    assert all(path == role.path and role.name for path, role in roles.items())


def test_roles_from_the_own_table_are_not_inferred(any_tiny: nn.Module) -> None:
    tabled = table_of(type(any_tiny).__name__) is not None
    inferred = {path for path, role in architecture(any_tiny).roles.items() if role.inferred}
    assert inferred == (set() if tabled else set(architecture(any_tiny).roles))


def test_the_unet_of_the_zoo_has_a_table() -> None:
    assert table_of("UNet2DModel") is not None
    assert table_of("NoSuchModel") is None


def test_roles_of_a_unet(unet: UNet2DModel) -> None:
    roles = {path: role.name for path, role in architecture(unet).roles.items()}
    expected = {
        "conv_in": "conv_in",
        "time_embedding.linear_1": "time.embed",
        "down_blocks.0.resnets.0.conv1": "resnet.conv1",
        "down_blocks.0.resnets.0.time_emb_proj": "resnet.time",
        "down_blocks.0.downsamplers.0.conv": "down.conv",
        "down_blocks.1.resnets.0.conv_shortcut": "resnet.shortcut",
        "down_blocks.1.attentions.0.to_q": "attention.self.q",
        "mid_block.attentions.0.to_out.0": "attention.self.out",
        "mid_block.resnets.1.conv2": "resnet.conv2",
        "up_blocks.0.upsamplers.0.conv": "up.conv",
        "up_blocks.1.resnets.1.conv_shortcut": "resnet.shortcut",
        "conv_out": "conv_out",
    }
    assert {path: roles[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "UNet2DConditionModel",
            {
                "conv_in": "conv_in",
                "conv_out": "conv_out",
                "down_blocks.1.attentions.0.proj_in": "transformer.in",
                "down_blocks.1.attentions.0.proj_out": "transformer.out",
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k": "attention.self.k",
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": "attention.cross.k",
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": "attention.cross.out",
                "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": "ff.up",
                "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": "ff.down",
                "up_blocks.0.resnets.0.conv_shortcut": "resnet.shortcut",
            },
        ),
        (
            "DiTTransformer2DModel",
            {
                "pos_embed.proj": "conv_in",
                "transformer_blocks.0.attn1.to_v": "attention.self.v",
                "transformer_blocks.1.ff.net.2": "ff.down",
                "proj_out_2": "conv_out",
            },
        ),
        # Joint attention over two streams counts as self-attention.
        ("SD3Transformer2DModel", {"transformer_blocks.0.attn.add_k_proj": "attention.self.k"}),
        ("PixArtTransformer2DModel", {"transformer_blocks.1.attn2.to_v": "attention.cross.v"}),
    ],
)
def test_inferred_roles(tiny: Callable[[str], nn.Module], name: str, expected: dict[str, str]) -> None:
    roles = architecture(tiny(name)).roles
    if table_of(name) is None:
        assert all(roles[path].inferred for path in expected)
    assert {path: roles[path].name for path in expected} == expected


def test_what_is_cross_attention_is_asked_of_the_module_not_of_its_name() -> None:
    # The first attention of each block reads the text here, as in the upscaler of Stable Diffusion.
    roles = architecture(tiny_conditional_unet(only_cross_attention=True)).roles
    assert {role.name for path, role in roles.items() if path.endswith("attn1.to_k")} >= {"attention.cross.k"}
    assert not any(role.name == "attention.self.k" for path, role in roles.items() if path.startswith("down_blocks"))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = nn.Module(), nn.Module()
        self.attn1.to_k, self.attn2.to_k = nn.Linear(2, 2), nn.Linear(2, 2)


def test_a_glob_reaches_further_up_than_the_nearest_class(monkeypatch: pytest.MonkeyPatch) -> None:
    globs = {"Pair.attn2.to_k": "second", "Module.to_k": "any", "Sequential.*": "never"}
    monkeypatch.setattr(roles, "_read", lambda text: (globs, frozenset()))
    found = architecture(nn.Sequential(Pair())).roles
    assert {path: role.name for path, role in found.items()} == {"0.attn1.to_k": "any", "0.attn2.to_k": "second"}
    # The order of the globs decides, not the distance of the class.
    globs = {"Sequential.*": "first", "Pair.attn2.to_k": "never"}
    assert {role.name for role in architecture(nn.Sequential(Pair())).roles.values()} == {"first"}


def test_layers_that_nobody_can_place_are_all_named(odd: nn.Module) -> None:
    with pytest.raises(MatchError) as caught:
        architecture(odd)
    for name in ("enter (Conv2d in OddDenoiser)", "embed (Linear in OddDenoiser)", "mix", "roles of OddDenoiser"):
        assert name in str(caught.value)
    assert "role table" in caught.value.fix


def test_one_unplaced_layer_among_placed_ones_is_named(unet: UNet2DModel) -> None:
    unet.extra = nn.Module()
    unet.extra.strange = nn.Linear(2, 2)
    with pytest.raises(MatchError, match=re.escape("none for extra.strange (Linear in Module)")):
        architecture(unet)


def test_a_table_from_outside(odd: nn.Module, odd_table: Path) -> None:
    found = architecture(odd, odd_table)
    assert {path: role.name for path, role in found.roles.items()}["mix"] == "body.shortcut"
    assert not any(role.inferred for role in found.roles.values())


def test_the_first_glob_of_a_table_wins(odd: nn.Module, tmp_path: Path) -> None:
    table = tmp_path / "globs.toml"
    table.write_text('[roles]\n"e*" = "begins.with.e"\n"embed" = "never"\n"*" = "rest"\n')
    roles = {path: role.name for path, role in architecture(odd, table).roles.items()}
    assert (roles["enter"], roles["embed"], roles["mix"]) == ("begins.with.e", "begins.with.e", "rest")


def test_a_table_names_the_blocks_that_are_reconstructed_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    table = tmp_path / "blocks.toml"
    table.write_text('[roles]\n"*" = "layer"\n[units]\nclasses = ["Sequential"]\n')
    found = architecture(model, table)
    assert [p for p, m in model.named_modules() if p and found.is_unit(p, m)] == ["0", "0.0", "1"]


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(MatchError, match="at least one linear or 2-D convolution"):
        architecture(nn.Sequential(nn.ReLU()))


def test_roles_do_not_depend_on_registration_order(unet: UNet2DModel) -> None:
    before = {path: role.name for path, role in architecture(unet).roles.items()}
    unet._modules = dict(reversed(unet._modules.items()))
    after = {path: role.name for path, role in architecture(unet).roles.items()}
    assert after == before
    assert list(after) != list(before)


def test_the_table_holds_after_layers_were_replaced(unet: UNet2DModel) -> None:
    from halftone.models.surgery import replace_layers

    before = architecture(unet).roles
    replace_layers(unet, before)
    assert architecture(unet).roles == before
    assert torch.is_tensor(unet.conv_in.weight)
