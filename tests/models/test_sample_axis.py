"""Where the samples are on a tape is seen by recording twice, on every architecture; a forward that changes its ways is refused."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from halftone.foundation.errors import CalibrationError
from halftone.models.example_inputs import example_inputs
from halftone.models.roles import architecture
from halftone.models.sample_axis import SampleAxis, sample_axis
from halftone.models.tape import Slot, Tape, record


def read_twice(model: nn.Module, count: int, other: int) -> tuple[Tape, SampleAxis]:
    is_unit = architecture(model).is_unit
    tape, again = (record(model, is_unit, *example_inputs(model, rows)) for rows in (count, other))
    return tape, sample_axis(tape, count, again, other)


def seen_by_units(tape: Tape) -> Iterator[int]:
    for entry in tape.entries:
        if entry.is_unit:
            leaves = pytree.tree_leaves((entry.args, entry.kwargs, entry.out))
            yield from (leaf.index for leaf in leaves if isinstance(leaf, Slot))


@pytest.mark.parametrize(("count", "other"), [(3, 2), (1, 2)])
def test_units_see_samples_along_the_first_axis(any_tiny: nn.Module, count: int, other: int) -> None:
    tape, axis = read_twice(any_tiny, count, other)
    found = [(axis.of(slot), tape.shapes[slot]) for slot in seen_by_units(tape)]
    assert all(shape[0] == count if has else shape[0] != 3 for has, shape in found)
    assert all(has is not None for has, _ in found)
    assert sum(bool(has) for has, _ in found) > len(found) / 2


class Folding(nn.Module):
    """Two samples side by side are one row of twice the width."""

    def __init__(self, branch: bool = False) -> None:
        super().__init__()
        self.layer, self.branch = nn.Linear(4, 4), branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x).relu() if self.branch and len(x) > 2 else self.layer(x)
        return x.reshape(1, -1) + torch.ones(3).sum()


def test_samples_elsewhere_are_told_from_constants() -> None:
    model = Folding()
    tape, again = (record(model, lambda path, m: path == "layer", (torch.randn(n, 4),), {}) for n in (3, 2))
    axis = sample_axis(tape, 3, again, 2)
    names = {getattr(entry.target, "__name__", entry.target): axis.of(entry.out.index) for entry in tape.entries}
    assert names == {"layer": True, "reshape": None, "ones": False, "sum": False, "add": None}


def test_a_forward_that_does_other_things_for_fewer_samples_is_refused() -> None:
    model = Folding(branch=True)
    tape, again = (record(model, lambda path, m: path == "layer", (torch.randn(n, 4),), {}) for n in (3, 2))
    with pytest.raises(CalibrationError, match="other operations for 2 samples than for 3"):
        sample_axis(tape, 3, again, 2)
