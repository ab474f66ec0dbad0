"""The tape: a replayed call equals the model bit by bit, units come in execution order, and value-dependent glue is refused."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.utils import _pytree as pytree

from halftone.foundation.errors import CalibrationError
from halftone.models.example_inputs import example_inputs
from halftone.models.roles import architecture
from halftone.models.tape import Tape, record, replay


def tape_of(model: nn.Module, batch: int = 2) -> tuple[Tape, tuple, dict]:
    args, kwargs = example_inputs(model, batch)
    return record(model, architecture(model).is_unit, args, kwargs), args, kwargs


def equal(mine: object, theirs: object) -> bool:
    leaves = zip(pytree.tree_leaves(mine), pytree.tree_leaves(theirs), strict=True)
    return all(torch.equal(a, b) for a, b in leaves if isinstance(a, torch.Tensor))


def test_a_replay_equals_the_model_bit_by_bit(any_tiny: nn.Module) -> None:
    tape, args, kwargs = tape_of(any_tiny)
    with torch.no_grad():
        assert equal(replay(tape, any_tiny, args, kwargs), any_tiny(*args, **kwargs))
        for seed, timestep in ((1, 3), (2, 999)):
            other, named = example_inputs(any_tiny, 2, seed, timestep)
            wanted = any_tiny(*other, **named)
            assert equal(replay(tape, any_tiny, other, named), wanted)
            assert not equal(wanted, any_tiny(*args, **kwargs)), "the inputs make no difference"


def test_a_replay_follows_mixed_timesteps(unet: UNet2DModel) -> None:
    tape, (sample, _), _ = tape_of(unet)
    mixed = torch.tensor([7, 800])
    with torch.no_grad():
        assert torch.equal(replay(tape, unet, (sample, mixed), {}).sample, unet(sample, mixed).sample)


def test_a_replay_runs_the_units_as_they_are_now(unet: UNet2DModel) -> None:
    tape, args, kwargs = tape_of(unet)
    unet.up_blocks[0].resnets[0].conv1.weight.data.mul_(2)
    with torch.no_grad():
        assert torch.equal(replay(tape, unet, args, kwargs).sample, unet(*args).sample)


def test_units_come_in_execution_order(any_tiny: nn.Module) -> None:
    tape, args, kwargs = tape_of(any_tiny)
    called: list[str] = []
    inside: list[str] = []

    def enter(path: str) -> None:
        if not inside:
            called.append(path)
        inside.append(path)

    for path, module in any_tiny.named_modules():
        if path in set(tape.units()):
            module.register_forward_pre_hook(lambda m, a, path=path: enter(path))
            module.register_forward_hook(lambda m, a, o: inside.pop() and None)
    with torch.no_grad():
        any_tiny(*args, **kwargs)
    assert tape.units() == called


def test_the_units_of_a_unet_go_down_and_up_again(unet: UNet2DModel) -> None:
    units = tape_of(unet)[0].units()
    places = [
        units.index(path)
        for path in (
            "conv_in",
            "down_blocks.0.resnets.0",
            "down_blocks.0.downsamplers.0.conv",
            "down_blocks.1.attentions.0",
            "mid_block.resnets.0",
            "mid_block.attentions.0",
            "mid_block.resnets.1",
            "up_blocks.0.resnets.0",
            "up_blocks.0.attentions.1",
            "up_blocks.0.upsamplers.0.conv",
            "up_blocks.1.resnets.1",
            "conv_out",
        )
    ]
    assert places == sorted(places)
    # Of the registration order only the up path comes before the middle.
    assert units.index("mid_block.resnets.1") < units.index("up_blocks.0.resnets.0")


def test_every_layer_lies_in_a_unit(any_tiny: nn.Module) -> None:
    units = tape_of(any_tiny)[0].units()
    for path in architecture(any_tiny).roles:
        assert any(path == unit or path.startswith(unit + ".") for unit in units), path


def test_values_are_let_go_after_their_last_use(unet: UNet2DModel) -> None:
    tape, *_ = tape_of(unet)
    alive: set[int] = set()
    most = 0
    for entry in tape.entries:
        assert not entry.reads() & set().union(*(e.last_used for e in tape.entries[: tape.entries.index(entry)]))
        alive |= entry.reads() | {leaf.index for leaf in pytree.tree_leaves(entry.out) if hasattr(leaf, "index")}
        alive -= set(entry.last_used)
        most = max(most, len(alive))
    assert most < 20 < sum(len(e.last_used) for e in tape.entries)


@pytest.mark.parametrize(
    "branch",
    [
        lambda x: x if x.mean() > 0 else -x,
        lambda x: x * float(x.mean()),
        lambda x: x[: int(x.abs().max()) + 1],
        lambda x: x * x.flatten()[0].item(),
        lambda x: x * x.flatten().tolist()[0],
    ],
    ids=["if", "float", "int", "item", "tolist"],
)
def test_glue_that_branches_on_values_is_refused(branch: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return branch(self.layer(x))

    model = Branching()
    with pytest.raises(CalibrationError, match="does not branch on tensor values"):
        record(model, lambda path, module: isinstance(module, nn.Linear), (torch.randn(2, 4),), {})
    assert not model.layer._forward_hooks
    assert not model.layer._forward_pre_hooks


def test_a_unit_may_branch_on_values() -> None:
    class Unit(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.mean() > 0 else -super().forward(x)

    model = nn.Sequential(nn.ReLU(), Unit(4, 4))
    x = torch.randn(2, 4)
    tape = record(model, lambda path, module: isinstance(module, Unit), (x,), {})
    assert torch.equal(replay(tape, model, (-x,), {}), model(-x))


def test_a_forward_with_a_memory_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(4, 4), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + torch.rand(4)

    with pytest.raises(CalibrationError, match="replay"):
        record(Counting(), lambda path, module: path == "layer", (torch.randn(2, 4),), {})
