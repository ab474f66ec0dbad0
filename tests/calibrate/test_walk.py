"""The walk: what it carries is what the models compute, in memory or spilled, and within its bound.

Reference throughout: plain forward hooks on the float model, and on the model as quantized so far.
"""

import copy
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from tests.comparison import sqnr
from torch.utils import _pytree as pytree

from halftone.calibrate.store import Store
from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Unit, Walk
from halftone.formats import quantize
from halftone.formats.segments import along_weight
from halftone.models.example_inputs import example_inputs
from halftone.models.quant_model import QuantModel
from halftone.models.tape import record
from halftone.quant.weights import weight_affine


def store(folder: Path, memory: int | None = None, dtype: torch.dtype = torch.float32) -> Store:
    return Store(memory, folder, dtype)


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def equal(mine: Any, theirs: Any) -> bool:
    pairs = zip(tensors(mine), tensors(theirs), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def seen_by(module: torch.nn.Module, path: str, calls: Iterator[tuple[tuple, dict]]) -> tuple[list[Any], list[Any]]:
    """Return inputs and outputs of the first call of the module at ``path`` in each call of the model."""
    inputs: list[Any] = []
    outputs: list[Any] = []

    def hook(m: Any, args: tuple, kwargs: dict, out: Any) -> None:
        inputs.append((args, kwargs))
        outputs.append(out)

    handle = module.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        for args, kwargs in calls:
            module(*args, **kwargs)
    handle.remove()
    return inputs, outputs


def round_layers(model: QuantModel, unit: Unit) -> None:
    """Round all layers of the unit to nearest."""
    for path in unit.layers:
        scheme, weight = model.plan.quantized()[path], model.originals[path]
        segments = (weight.shape[1],)
        affine = weight_affine(weight, segments, scheme.weight, "min_max")
        codes = quantize(weight, along_weight(affine, segments, weight.ndim), scheme.weight.number_format)
        model.layer(path).hold(codes, affine, scheme)


def batches(data: Trajectory, size: int) -> Iterator[tuple[tuple, dict]]:
    return (data.rows(index) for index in data.batches(size))


def test_without_changes_both_streams_are_the_float_model(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    plain = copy.deepcopy(unet)
    walk = Walk(opened(unet), data, 4, store(tmp_path))
    visited = []
    for unit in walk:
        inputs, outputs = seen_by(plain, unit.path, batches(data, 4))
        assert equal(unit.calls[FLOAT], inputs), unit.path
        assert equal(unit.calls[QUANTIZED], inputs), unit.path
        assert equal(unit.targets, outputs), unit.path
        visited.append(unit.path)
    assert len(visited) == len(walk) > 15
    assert visited[-1] == "conv_out"


def test_the_quantized_stream_is_the_model_with_its_prefix_quantized(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    plain = copy.deepcopy(unet)
    model = opened(unet)
    differed = 0
    for unit in Walk(model, data, 5, store(tmp_path)):
        float_inputs, outputs = seen_by(plain, unit.path, batches(data, 5))
        inputs, _ = seen_by(model.module, unit.path, batches(data, 5))
        assert equal(unit.calls[FLOAT], float_inputs), unit.path
        assert equal(unit.targets, outputs), unit.path
        assert equal(unit.calls[QUANTIZED], inputs), unit.path
        differed += not equal(inputs, float_inputs)
        round_layers(model, unit)
    assert differed > 10
    assert all(model.layer(path).scheme is not None for path in model.plan.quantized())


def test_nothing_that_layers_prepare_piles_up_behind_a_walk(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    model = opened(unet)
    for unit in Walk(model, data, 5, store(tmp_path)):
        round_layers(model, unit)
    assert not any(model.layer(path)._prepared for path in model.plan.quantized())


def test_a_slow_first_call_says_nothing_about_later_ones(
    unet: UNet2DModel,
    opened: Callable[..., QuantModel],
    data: Trajectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = iter((10.0, 3.0))

    def timed(*args: Any) -> Any:
        tape, seconds = record(*args), next(taken)
        for entry in tape.entries:
            entry.seconds = seconds
        return tape

    monkeypatch.setattr("halftone.calibrate.walk.record", timed)
    walk = Walk(opened(unet), data, 4, store(tmp_path))
    assert walk.seconds == [4.0] * len(walk), "of three samples, for four"


def test_a_model_that_is_quantized_already_still_gives_float_targets(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    plain = copy.deepcopy(unet)
    model = opened(unet)
    for unit in Walk(model, data, 5, store(tmp_path)):
        round_layers(model, unit)
    for quantized in (True, False):
        for unit in Walk(model, data, 5, store(tmp_path), quantized=quantized):
            inputs, outputs = seen_by(plain, unit.path, batches(data, 5))
            assert equal(unit.calls[FLOAT], inputs)
            assert equal(unit.targets, outputs)
            assert equal(unit.calls[QUANTIZED], inputs) == (
                not quantized or unit.path.startswith("time_embedding.linear_1") or unit.path == "conv_in"
            )


def collect(model: QuantModel, data: Trajectory, kept: Store) -> list[Any]:
    found = []
    for unit in Walk(model, data, 5, kept):
        round_layers(model, unit)
        found.append(
            pytree.tree_map(
                lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, (unit.calls, unit.targets)
            )
        )
    return found


def test_a_spilled_walk_is_bitwise_the_one_in_memory(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    other = copy.deepcopy(unet)
    spilling = store(tmp_path / "spill", memory=30_000)
    most = 0
    keep = spilling.keep

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        kept = keep(tensor)
        most = max(most, spilling.used)
        return kept

    spilling.keep = watched  # type: ignore[method-assign]
    memory = store(tmp_path)
    assert equal(collect(opened(unet), data, memory), collect(opened(other), data, spilling))
    assert (memory.spilled, spilling.spilled > 500_000) == (0, True)
    # Tensors below a page are never spilled, so the bound may be passed by those few that live at once.
    assert most <= 30_000 + 20 * 4096
    assert spilling.used >= 0
    assert list((tmp_path / "spill").iterdir()) == []


def test_bfloat16_halves_the_space_and_costs_its_rounding(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    exact = [unit.targets for unit in Walk(opened(copy.deepcopy(unet)), data, 5, store(tmp_path))]
    for unit, wanted in zip(Walk(opened(unet), data, 5, store(tmp_path, dtype=torch.bfloat16)), exact, strict=True):
        for mine, theirs in zip(tensors(unit.targets), tensors(wanted), strict=True):
            # Vectors, the timestep's embedding above all, stay exact.
            assert mine.dtype == (torch.bfloat16 if mine.ndim > 2 else torch.float32)
            assert sqnr(theirs, mine) > 35
        _, _, (target,) = unit.minibatch(FLOAT, torch.tensor([0, 7]))
        assert target.dtype == torch.float32


def test_minibatches_are_rows_of_the_batches(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    for unit in Walk(opened(unet), data, 4, store(tmp_path)):
        assert len(unit) == 12
        args, kwargs, (target,) = unit.minibatch(FLOAT, torch.tensor([9, 2, 4]))
        for row, (batch, place) in enumerate([(2, 1), (0, 2), (1, 0)]):
            assert torch.equal(target[row], tensors(unit.targets[batch])[0][place])
            assert torch.equal(tensors((args, kwargs))[0][row], tensors(unit.calls[FLOAT][batch])[0][place])
        with torch.no_grad():
            again = tensors(unit.module(*args, **kwargs))[0]
        assert sqnr(target, again) > 90


def test_a_layer_that_runs_twice_is_decided_once(opened: Callable[..., QuantModel], tmp_path: Path) -> None:
    """DiT calls the embedding of its first block again for its head."""
    dit = DiTTransformer2DModel(
        sample_size=4,
        patch_size=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        norm_num_groups=4,
    ).eval()
    for parameter in dit.parameters():
        parameter.data.normal_(0, 0.2)
    args, kwargs = example_inputs(dit, 4)
    data = Trajectory(args, kwargs, torch.arange(4), {})
    model = opened(dit)
    decided: list[str] = []
    for unit in Walk(model, data, 2, store(tmp_path)):
        inputs, _ = seen_by(model.module, unit.path, batches(data, 2))
        assert equal(unit.calls[QUANTIZED], inputs[: len(unit.calls[QUANTIZED])]), unit.path
        round_layers(model, unit)
        decided += unit.layers
    assert sorted(decided) == sorted(model.plan.quantized())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_store_gives_values_back(tmp_path: Path, dtype: torch.dtype) -> None:
    kept = store(tmp_path / "spill", memory=10_000, dtype=dtype)
    size = 4 if dtype == torch.float32 else 2
    first, second = torch.randn(2, 10, 100), torch.randn(50, 6, 10)
    a, b = kept.keep(first), kept.keep(second)
    assert torch.equal(a, first.to(dtype))
    assert torch.equal(b, second.to(dtype))
    assert (kept.used, kept.spilled) == ((8000, 12_000) if size == 4 else (10_000, 0))
    kept.release(b)
    assert kept.used == (8000 if size == 4 else 4000)
    kept.release(a)
    assert kept.used == 0
    kept.release(first)  # was never kept
    assert kept.used == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "expanded", "sliced"])
def test_a_spilled_tensor_keeps_its_layout(tmp_path: Path, layout: str) -> None:
    x = torch.randn(3, 8, 16, 16)
    x = {
        "contiguous": x,
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.flatten(2).transpose(1, 2),
        "expanded": x[:1].expand(3, -1, -1, -1),
        "sliced": x[:, 1::2],
    }[layout]
    spilled = store(tmp_path / "spill", memory=0).keep(x)
    assert torch.equal(spilled, x)
    if layout not in ("expanded", "sliced"):
        assert spilled.stride() == x.stride()


def test_a_store_does_not_round_timesteps(tmp_path: Path) -> None:
    angles = torch.arange(2000.0).view(2, -1) + 1 / 3
    assert torch.equal(store(tmp_path, dtype=torch.bfloat16).keep(angles), angles)


def test_a_store_keeps_whole_numbers_as_they_are(tmp_path: Path) -> None:
    for memory in (None, 0):
        kept = store(tmp_path / "spill", memory, torch.bfloat16)
        steps = torch.arange(3000) * 1001
        assert torch.equal(kept.keep(steps), steps)
        assert kept.spilled == (0 if memory is None else 24_000)


def test_a_spilled_tensor_leaves_no_file_behind(tmp_path: Path) -> None:
    kept = store(tmp_path / "spill", memory=0)
    held = [kept.keep(torch.full((3000,), float(i))) for i in range(5)]
    assert list((tmp_path / "spill").iterdir()) == []
    assert [float(h.mean()) for h in held] == [0, 1, 2, 3, 4]


def test_no_unit_runs_more_than_twice_a_batch(
    unet: UNet2DModel, opened: Callable[..., QuantModel], data: Trajectory, tmp_path: Path
) -> None:
    """Once in float and once on quantized inputs: a walk that ran the prefix again for each unit would run the first ones most."""
    model = opened(unet)
    walk = Walk(model, data, 5, store(tmp_path))  # two batches
    counted: dict[str, int] = {}

    def count(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counted[path] = counted.get(path, 0) + 1

        return hook

    handles = [model.layer(path).register_forward_hook(count(path)) for path in model.plan.quantized()]
    for unit in walk:
        round_layers(model, unit)
    for handle in handles:
        handle.remove()
    assert len(counted) == len(model.plan.quantized())
    assert max(counted.values()) <= 2 * 2, {path: n for path, n in counted.items() if n > 4}


def test_a_disk_that_is_full_is_an_error_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place is taken before the file is mapped: to write into a hole for which there is no room kills the process."""
    spilling, big = store(tmp_path, memory=1), torch.ones(10_000)
    seen: list[int] = []

    def full(file: int, offset: int, length: int) -> None:
        seen.append(length)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            spilling.keep(big)
    assert seen == [40_000] and list(tmp_path.iterdir()) == [] and spilling.spilled == 0
    assert torch.equal(spilling.keep(big), big) and spilling.spilled == 40_000
