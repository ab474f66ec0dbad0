"""Record a trajectory: one hook on the denoiser while the float pipeline samples, so that any pipeline serves."""

import contextlib
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils import _pytree as pytree

from halftone.calibrate.conditions import check_each, digests, in_turn
from halftone.calibrate.samples import Stop, is_number, sample_leaves
from halftone.calibrate.sampling import batches, check_steps, last_step, protocol, quiet, run_steps
from halftone.calibrate.select_contract import AbstractSelect
from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.errors import CalibrationError
from halftone.foundation.progress import Progress
from halftone.foundation.seeds import generator
from halftone.models.denoiser import denoiser, refuse_cache
from halftone.models.precision import as_float
from halftone.models.reach import reach
from halftone.models.standing_in import copied, standing_in

# Pipelines of diffusers put the unconditional rows first.
Halves = Literal["both", "conditional", "unconditional"]


class _Hook:
    """Keeps the rows that are wanted of each call. The call index is counted here, per pipeline call, from 0.

    Attributes:
        batched: for each leaf of a call whether it has samples; the others are kept whole, and once.
        first: the leaves of the first call kept, and the structure of all.
        kept: by call index, the wanted rows of the leaves that have samples.
    """

    def __init__(self, wanted: dict[int, int], batched: tuple[bool, ...], halves: Halves = "both") -> None:
        self.wanted, self.last, self.batched, self.halves = wanted, max(wanted), batched, halves
        self.kept: dict[int, list[list[torch.Tensor]]] = {index: [] for index in wanted}
        self.first: tuple[list[Any], pytree.TreeSpec] | None = None
        self.missing = dict(wanted)
        self.index = 0
        self.trajectories = 1  # of the pipeline call that runs

    def _by_trajectory(self, rows: int) -> torch.Tensor:
        """Return the rows of a call that may be kept, those of one trajectory together.

        Guided pipelines stack all unconditional rows on all conditional ones: taken as they come, only one kind might be kept,
        and which rows are kept would depend on the batch.
        """
        order = torch.arange(rows)
        several = rows // self.trajectories if rows % self.trajectories == 0 else 1
        if self.halves == "both":
            return order.view(several, -1).t().flatten()
        if several != 2:
            got = f"{rows} rows for {self.trajectories}"
            fix = "Guidance is off where its scale is 1 or less. Leave calibration.halves out."
            raise CalibrationError(f"calibration.halves: {self.halves}", "two rows for each image", got, fix)
        return order.chunk(2)[self.halves == "conditional"]

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        left = self.missing.get(self.index, 0)
        if left:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            self._check(leaves, spec)
            samples = [leaf for leaf, has in zip(leaves, self.batched, strict=True) if has]
            rows = max(leaf.shape[0] for leaf in samples if leaf.ndim)
            order = self._by_trajectory(rows)[:left]
            # A copy: schedulers may reuse the memory. One timestep for the whole batch becomes one for each row.
            self.kept[self.index].append([_copy(_rows(leaf, rows)[order.to(leaf.device)]) for leaf in samples])
            self.missing[self.index] = left - len(order)
        self.index += 1
        if self.index > self.last:
            raise Stop

    def _check(self, leaves: list[Any], spec: pytree.TreeSpec) -> None:
        """Make sure that the call is like the first one, and its constants those of the first one."""
        if self.first is None:
            self.first = [_copy(leaf) for leaf in leaves], spec
        before, structure = self.first
        expected = "calls that differ in their samples only"
        if spec != structure:
            raise CalibrationError("calibration", expected, "other inputs in a later call")
        for i, (leaf, old, has) in enumerate(zip(leaves, before, self.batched, strict=True)):
            if not has and not _same(_copy(leaf), old):
                name = pytree.keystr(pytree.tree_leaves_with_path(pytree.tree_unflatten(leaves, spec))[i][0])
                raise CalibrationError("calibration", expected, f"another constant at {name} in a later call")


def _copy(leaf: Any) -> Any:
    """Return a copy of a tensor on the CPU, 16-bit floats widened to float32, in which methods compute; others as they are."""
    return as_float(leaf.detach().to("cpu", copy=True)) if isinstance(leaf, torch.Tensor) else leaf


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return a == b if isinstance(a, (str, int, float)) else True


def _rows(leaf: torch.Tensor, rows: int) -> torch.Tensor:
    return leaf.reshape(1).expand(rows) if is_number(leaf) else leaf


def count_calls(
    pipe: DiffusionPipeline, steps: int, arguments: Mapping[str, Any], network: nn.Module | None = None
) -> int:
    """Return how often one sampling calls the denoiser, or ``network``; some samplers call it more than once in a step.

    It is computed once for each shape of its inputs and answers the same from then on: how often a sampler calls does not depend on
    the numbers, and a large network would take minutes.
    """
    network = network or denoiser(pipe)
    seen = 0

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal seen
        seen += 1

    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with quiet(pipe), last_step(pipe.scheduler), torch.no_grad(), _computed_once(network):
            run_steps(pipe, steps, arguments, network)
    finally:
        handle.remove()
    return seen


def _computed_once(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Let ``network`` answer calls of one shape with copies of the first one's answer, while the context lasts."""
    compute = network.forward
    known: dict[Any, Any] = {}

    def answer(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        key = tuple(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf) for leaf in leaves)
        if key not in known:
            known[key] = compute(*args, **kwargs)
        return copied(known[key])

    return standing_in(network, answer)


def record(
    pipe: DiffusionPipeline,
    select: AbstractSelect,
    samples: int,
    steps: int,
    seed: int,
    batch: int = 32,
    progress: Progress | None = None,
    each: Mapping[str, Sequence[Any]] | None = None,
    network: nn.Module | None = None,
    halves: Halves = "both",
    **call: Any,
) -> Trajectory:
    """Sample with the float pipeline and return ``samples`` of its denoiser's inputs.

    Args:
        select: which calls the samples come from.
        steps: ``num_inference_steps`` of the sampler.
        each: pipeline arguments with one value a trajectory, such as prompts; taken in an order that ``seed`` decides.
        network: another module that the pipeline calls, whose inputs are wanted instead.
        halves: of a guided call, which rows to take: ``both`` (as the paper pools them), ``conditional`` or ``unconditional``.
        call: further pipeline arguments (``eta``, ``guidance_scale``).

    Raises:
        ConfigError: values of an argument that are no list.
        CalibrationError: no samples asked for, an enabled cache, inputs that are NaN or constant, or that differ between calls in
            more than their samples.
    """
    check_each(each)
    network = network or denoiser(pipe)
    refuse_cache(network)
    check_steps(pipe, steps)
    if samples < 1 or steps < 1:
        raise CalibrationError("calibration", "at least one sample and one step", f"{samples} samples, {steps} steps")
    first = next(batches(pipe, 1, seed, 1, {k: list(v)[:1] for k, v in (each or {}).items()}, call))
    calls = count_calls(pipe, steps, first, network)
    chosen = select.choose(calls, samples, generator(seed, "calibration", "select"))
    wanted = dict(sorted(Counter(chosen.tolist()).items()))
    two = next(batches(pipe, 2, seed, 2, {k: list(v)[:1] * 2 for k, v in (each or {}).items()}, call))
    hook = _Hook(wanted, sample_leaves(pipe, network, steps, first, two if batch > 1 else None), halves)
    most = max(wanted.values())
    repeated = in_turn(each, most, seed)
    handle = network.register_forward_pre_hook(hook, with_kwargs=True)
    task = (progress or Progress(enabled=False)).task("recording calls", sum(wanted.values()), "samples")
    try:
        with task, quiet(pipe), last_step(pipe.scheduler), torch.no_grad():
            for arguments in batches(pipe, most, seed, batch, repeated, call, "calibration"):
                before, hook.index = sum(hook.missing.values()), 0
                hook.trajectories = len(arguments["generator"])
                with contextlib.suppress(Stop):
                    run_steps(pipe, steps, arguments, network)
                task.advance(before - sum(hook.missing.values()))
                if not any(hook.missing.values()):
                    break
    finally:
        handle.remove()
    facts = {k: v for k, v in asdict(protocol(pipe, most, steps, seed, batch, **call)).items() if k in _IDENTITY}
    identity = {
        **facts,
        "scheduler_config": plain_config(pipe.scheduler),
        "calls": calls,
        "select": {"name": type(select).__name__.lower(), **asdict(select)},  # type: ignore[call-overload]
        "samples": samples,
        "arguments": _arguments(pipe, call),
        **({} if halves == "both" else {"halves": halves}),
        **({"conditions": digests(each)} if each else {}),
        **({"empty_prompt": "zeros"} if pipe.config.get("force_zeros_for_empty_prompt") else {}),
    }
    trajectory = _join(hook, wanted, identity)
    trajectory.check()
    reached = reach(network, trajectory.args, trajectory.kwargs)
    return replace(trajectory, identity={**identity, "reach": reached})


_GUIDANCE = "guidance_scale"  # as diffusers' pipelines call it
_IDENTITY = ("pipeline", "scheduler", "steps", "eta", "seed", "dtype")


def plain_config(scheduler: Any) -> dict[str, Any]:
    """Return the scheduler's settings that JSON can hold, without bookkeeping."""
    kept = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    return {k: v for k, v in kept.items() if isinstance(v, (str, int, float, bool)) or v is None}


def _arguments(pipe: DiffusionPipeline, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pipeline's arguments that JSON can hold, the guidance that it has of its own among them."""
    own = inspect.signature(type(pipe).__call__).parameters.get(_GUIDANCE)
    given = {_GUIDANCE: own.default, **call} if own is not None else call
    return {k: v for k, v in given.items() if isinstance(v, (str, int, float, bool))}


def _join(hook: _Hook, wanted: dict[int, int], identity: dict[str, Any]) -> Trajectory:
    calls = [leaves for index in wanted for leaves in hook.kept[index]]
    if hook.first is None or not calls:
        raise CalibrationError("calibration", "denoiser calls", "none")
    leaves, spec = hook.first
    samples = (torch.cat(column) for column in zip(*calls, strict=True))
    joined = [next(samples) if has else leaf for leaf, has in zip(leaves, hook.batched, strict=True)]
    args, kwargs = pytree.tree_unflatten(joined, spec)
    steps = torch.tensor([index for index, count in wanted.items() for _ in range(count)])
    return Trajectory(args, kwargs, steps, identity, hook.batched)
