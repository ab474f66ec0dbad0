"""Which tensors have samples: in a recorded call, and on the way through the walk. Lengths alone would mislead everywhere here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FirstBlockCacheConfig, FluxTransformer2DModel
from torch import nn
from torch.utils import _pytree as pytree

from halftone.calibrate.record import record
from halftone.calibrate.select.uniform import Uniform
from halftone.calibrate.store import Store
from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import FLOAT, QUANTIZED, Walk, outputs
from halftone.foundation.errors import CalibrationError
from halftone.models.policy import Rule, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import Architecture, Role
from halftone.quant import QuantSpec

TEXT, PICTURE = 3, 4  # tokens


class FluxLike(DiffusionPipeline):
    """The calls of Flux's pipeline: ids of tokens without a batch axis, those of the text all zero."""

    def __init__(self, transformer: nn.Module, scheduler: Any, spoil: str = "") -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.spoil = spoil

    @torch.no_grad()
    def __call__(self, generator: list[torch.Generator], num_inference_steps: int = 3, output_type: str = "np") -> None:
        dtype = self.transformer.dtype
        x = torch.stack([torch.randn(PICTURE, 4, generator=g) for g in generator]).to(dtype)
        text = torch.stack([torch.randn(TEXT, 12, generator=g) for g in generator]).to(dtype)
        pooled = text[:, 0, :10] + 1
        ids = torch.zeros(PICTURE, 3)
        ids[:, 1:] = torch.cartesian_prod(torch.arange(2), torch.arange(2))
        self.scheduler.set_timesteps(num_inference_steps)
        for i, t in enumerate(self.scheduler.timesteps):
            out = self.transformer(
                hidden_states=x,
                timestep=t.expand(len(x)).to(dtype) / 1000,
                pooled_projections=pooled,
                encoder_hidden_states=text if self.spoil != "longer" else text.flatten(0, 1)[None],
                txt_ids=torch.zeros(TEXT, 3) + (i if self.spoil == "changing" else 0),
                img_ids=ids,
                joint_attention_kwargs={"rows": list(x)} if self.spoil == "list" else None,
                return_dict=False,
            )[0]
            x = self.scheduler.step(out, t, x).prev_sample


def flux(seed: int = 0) -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(2, 2, 4),
        )
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2)
    return model.eval().requires_grad_(False)


def pipe(spoil: str = "") -> FluxLike:
    return FluxLike(flux(), DDIMScheduler(), spoil)


@pytest.mark.parametrize("batch", [1, 2, PICTURE])
def test_ids_of_tokens_are_kept_whole_and_once(batch: int) -> None:
    """Also with as many samples a batch as tokens."""
    data = record(pipe(), Uniform(3), 12, 3, 0, batch)
    shapes = {name: tuple(leaf.shape) for name, leaf in data.kwargs.items() if isinstance(leaf, torch.Tensor)}
    assert shapes == {
        "hidden_states": (12, PICTURE, 4),
        "timestep": (12,),
        "pooled_projections": (12, 10),
        "encoder_hidden_states": (12, TEXT, 12),
        "txt_ids": (TEXT, 3),
        "img_ids": (PICTURE, 3),
    }
    assert data.kwargs["return_dict"] is False
    assert data.kwargs["img_ids"][:, 1].tolist() == [0, 0, 1, 1]
    _, kwargs = data.rows(torch.tensor([5, 1]))
    assert torch.equal(kwargs["img_ids"], data.kwargs["img_ids"])
    assert torch.equal(kwargs["hidden_states"], data.kwargs["hidden_states"][[5, 1]])


def test_what_has_samples_is_saved_with_them(tmp_path: Path) -> None:
    data = record(pipe(), Uniform(3), 6, 3, 0, 4)
    data.save(tmp_path / "trajectory.safetensors")
    again = Trajectory.load(tmp_path / "trajectory.safetensors")
    assert again.batched == data.batched
    assert sum(data.batched) == 4
    leaves = zip(pytree.tree_leaves(data.rows(slice(2, 4))), pytree.tree_leaves(again.rows(slice(2, 4))), strict=True)
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in leaves)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("changing", r"another constant at \[1\]\['txt_ids'\]"),
        ("longer", r"\(1, 3, 12\) for one sample and \(1, 6, 12\) for two at \[1\]\['encoder_hidden_states'\]"),
        ("list", "other inputs for two samples than for one"),
    ],
)
def test_calls_that_cannot_be_cut_into_samples_are_refused(spoil: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        record(pipe(spoil), Uniform(3), 6, 3, 0, 4)


def test_a_cache_is_refused_when_recording_and_when_walking(opened: Callable[..., QuantModel], tmp_path: Path) -> None:
    one = pipe()
    data = record(one, Uniform(3), 6, 3, 0, 4)
    one.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(CalibrationError, match=r"FluxTransformer2DModel: .*an enabled cache\. Call its disable_cache"):
        record(one, Uniform(3), 6, 3, 0, 4)
    with pytest.raises(CalibrationError, match="an enabled cache"):
        Walk(opened(one.transformer), data, 3, Store(None, tmp_path))
    one.transformer.disable_cache()
    record(one, Uniform(3), 6, 3, 0, 4)


@pytest.mark.parametrize("batch", [TEXT, PICTURE, TEXT + PICTURE])
def test_minibatches_of_a_two_stream_block(opened: Callable[..., QuantModel], tmp_path: Path, batch: int) -> None:
    """With as many samples a batch as there are tokens of either kind, and of both: rotations are ``[tokens, channels]``."""
    one = pipe()
    data = record(one, Uniform(3), 14, 3, 0, 4)
    index = torch.tensor([9, 0, 13, 2, 5])
    found = {}
    for unit in Walk(opened(one.transformer), data, batch, Store(None, tmp_path)):
        assert torch.equal(unit.steps, data.calls[torch.cat(data.batches(batch))])
        for stream in (FLOAT, QUANTIZED):
            args, kwargs, targets = unit.minibatch(stream, index)
            with torch.no_grad():
                again = outputs(unit.module(*args, **kwargs))
            for mine, wanted in zip(again, targets, strict=True):
                assert mine.shape == wanted.shape
                assert torch.allclose(mine, wanted, atol=1e-4 * float(wanted.abs().max()))
        found[unit.path] = [tuple(target.shape) for target in targets]
    assert found["transformer_blocks.0"] == [(5, TEXT, 16), (5, PICTURE, 16)]
    assert found["single_transformer_blocks.0"] == [(5, TEXT, 16), (5, PICTURE, 16)]


class WithTable(nn.Module):
    """A unit that reads a constant as long as the batch, another that does not give one row a sample."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.first, self.second = Adding(), Adding()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x, torch.arange(4.0) * 2)
        return self.second(x.repeat_interleave(self.rows, 0), torch.ones(4))[:: self.rows]


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + table


def with_table(rows: int) -> QuantModel:
    module = WithTable(rows)
    roles = {path: Role("layer", "body", False) for path in ("first.layer", "second.layer")}
    found = Architecture(roles, frozenset({"Adding"}))
    return QuantModel.open(module, found, make_plan(module, found, (Rule("*", weight=QuantSpec("uint4", "channel")),)))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_constant_as_long_as_the_batch_is_kept_whole(tmp_path: Path, batch: int) -> None:
    data = Trajectory((torch.randn(8, 4),), {}, torch.arange(8), {})
    for unit in Walk(with_table(1), data, batch, Store(None, tmp_path)):
        (x, table), _, _ = unit.minibatch(FLOAT, torch.tensor([6, 1]))
        assert (x.shape, table.shape) == ((2, 4), (4,))


def test_a_unit_with_several_rows_a_sample_is_walked_but_not_cut(tmp_path: Path) -> None:
    data = Trajectory((torch.randn(8, 4),), {}, torch.arange(8), {})
    first, second = Walk(with_table(3), data, 4, Store(None, tmp_path))
    assert first.minibatch(FLOAT, torch.tensor([6]))[2][0].shape == (1, 4)
    assert second.targets[0].shape == (12, 4)
    with pytest.raises(CalibrationError, match=r"second: expected .*one row a sample.*got \(12, 4\) for 4 samples"):
        second.minibatch(FLOAT, torch.tensor([6]))
