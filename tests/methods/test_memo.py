"""What a run has computed it has: memos come back bit by bit, under their own step and name only."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.comparison import identical

from halftone.foundation.errors import ConfigError
from halftone.methods import contract
from halftone.methods.contract import Run


def result() -> dict[str, torch.Tensor]:
    return {
        "codes": torch.randint(0, 256, (3, 5), dtype=torch.uint8),
        "scale": torch.randn(4) * 1e-38,
        "errors": torch.tensor([1 / 3, float("inf")], dtype=torch.float64),
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(7),
    }


def refuse() -> dict[str, torch.Tensor]:
    raise AssertionError("computed again")


def test_a_memo_is_what_was_computed(tmp_path: Path) -> None:
    wanted = result()
    first = Run(work=tmp_path, step="reconstruct").memo("unit", lambda: wanted)
    again = Run(work=tmp_path, step="reconstruct").memo("unit", refuse)
    assert identical(first, wanted)
    assert identical(again, wanted)


def test_steps_and_names_have_their_own(tmp_path: Path) -> None:
    values = {}
    for step in ("a", "a/b", "b"):
        for name in ("unit.0", "unit.1", "a-unit"):
            run = Run(work=tmp_path, step=step)
            values[step, name] = run.memo(name, lambda: {"v": torch.tensor(len(values))})
    for (step, name), value in values.items():
        assert identical(Run(work=tmp_path, step=step).memo(name, refuse), value)
    assert len({int(value["v"]) for value in values.values()}) == 9


def test_without_a_place_nothing_is_kept() -> None:
    run = Run(step="a")
    assert int(run.memo("x", lambda: {"v": torch.tensor(1)})["v"]) == 1
    assert int(run.memo("x", lambda: {"v": torch.tensor(2)})["v"]) == 2


def test_an_empty_memo(tmp_path: Path) -> None:
    assert Run(work=tmp_path).memo("none", dict) == {}
    assert Run(work=tmp_path).memo("none", refuse) == {}


def test_views_and_gradients_are_stored_as_numbers(tmp_path: Path) -> None:
    base = torch.randn(4, 6, requires_grad=True)
    found = Run(work=tmp_path).memo("views", lambda: {"a": base.t(), "b": base[:, ::2]})
    assert torch.equal(found["a"], base.t())
    assert torch.equal(found["b"], base[:, ::2])
    assert not found["a"].requires_grad


def test_an_interrupted_computation_leaves_no_memo(tmp_path: Path) -> None:
    def interrupted() -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    run = Run(work=tmp_path, step="a")
    with pytest.raises(KeyboardInterrupt):
        run.memo("unit", interrupted)
    assert int(run.memo("unit", lambda: {"v": torch.tensor(5)})["v"]) == 5


def test_a_memo_cut_short_while_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(tensors: dict, path: Path, **kwargs: object) -> None:
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:20])
        raise OSError("disk full")

    run = Run(work=tmp_path, step="a")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(contract, "save_file", cut)
        run.memo("unit", lambda: {"v": torch.tensor(5)})
    assert int(run.memo("unit", lambda: {"v": torch.tensor(6)})["v"]) == 6


def test_a_store_has_the_bounds_of_its_run(tmp_path: Path) -> None:
    bounded = Run(work=tmp_path, memory=5000, keep=torch.bfloat16).store()
    assert (bounded.memory, bounded.dtype, bounded.folder.parent) == (5000, torch.bfloat16, tmp_path)
    assert Run(memory=None).store().memory is None


def test_a_bound_needs_a_folder_to_spill_to() -> None:
    with pytest.raises(ConfigError, match="memory: expected a folder `work`"):
        Run(memory=5000)
