"""What a recipe would make of a model, before any work: each layer, the final bytes, and the memory and time to expect."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halftone.artifact import sizes
from halftone.artifact.schema import Description
from halftone.artifact.structure import prepare
from halftone.calibrate.influence import PROBES
from halftone.foundation.build import plain
from halftone.foundation.errors import CalibrationError, ConfigError
from halftone.foundation.seeds import generator
from halftone.methods.effort import Effort, Job
from halftone.methods.transforms.split_shortcut import SplitShortcut
from halftone.models.concatenation import concatenated_inputs
from halftone.models.cost import FLOAT_BYTES, ModelCost, Work, count
from halftone.models.example_inputs import example_inputs
from halftone.models.left_float import LeftFloat, without_role
from halftone.models.policy import Plan, make_plan, why_float
from halftone.models.roles import Architecture, architecture
from halftone.recipes.beside import AT_THE_LATENTS, plan_beside
from halftone.recipes.recipe import Recipe

# By path of a layer that reads a concatenation: the channels of its parts, and whether it is sure to be split.
_Parts = dict[str, tuple[tuple[int, ...], bool]]


@dataclass(frozen=True)
class PlannedLayer:
    """One linear or convolution.

    Attributes:
        weight, input: number formats; ``float`` where it is not quantized.
        reason: why the whole layer stays float; empty where it does not.
        parts: channels of the two tensors that it reads concatenated, where the recipe may split it; else empty.
        bytes: of its codes, scales, zero points and bias, not split.
    """

    path: str
    role: str
    inferred: bool
    kind: str
    shape: tuple[int, ...]
    weight: str
    input: str
    reason: str
    parts: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes that the denoiser's quantization needs on top of the rest of the pipeline.

    Attributes:
        weights: float32 weights, which are kept until the end, and codes.
        samples: the calibration's inputs.
        activations: what a walk carries from unit to unit, at most, of both its streams; ``spilled`` of it to disk.
        working: of one step's own, the most of any step; ``step`` is its name.
    """

    weights: int
    samples: int
    activations: int
    spilled: int
    working: int
    step: str

    @property
    def held(self) -> int:
        """What is in memory at once."""
        return self.weights + self.samples + self.activations - self.spilled + self.working


@dataclass(frozen=True)
class Forecast:
    """A float denoiser as a recipe would quantize it.

    Attributes:
        sizes: bytes as :func:`halftone.artifact.sizes` counts them in the result; nothing split unless the recipe always splits.
        if_split: bytes more, where all that may be split is.
        operands: formats of attention's operands, with how many attentions hold them.
        memory: None where the class's inputs are not known.
        work: of each step, the recording of samples first; None where nobody has counted it.
        notes: what the policy asks for and the model cannot have, and what is not known here; sentences.
    """

    model: str
    parameters: int
    recipe: str
    title: str
    budget: str
    layers: tuple[PlannedLayer, ...]
    operands: dict[str, int]
    sizes: dict[str, int]
    if_split: int
    without_role: tuple[LeftFloat, ...]
    memory: Memory | None = None
    work: dict[str, Work | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def by_role(self) -> dict[str, list[PlannedLayer]]:
        """The layers by role, in the order of first appearance."""
        found: dict[str, list[PlannedLayer]] = {}
        for layer in self.layers:
            found.setdefault(layer.role, []).append(layer)
        return found

    def plain(self) -> dict[str, Any]:
        """Return all of it, JSON-safe."""
        memory = {**plain(self.memory), "held": self.memory.held} if self.memory else None
        return {**plain(self), "memory": memory}


def forecast(
    module: nn.Module,
    recipe: Recipe,
    budget: str,
    steps: int = 50,
    memory: int | None = None,
    roles: Path | None = None,
    keep: torch.dtype = torch.float32,
    network: str = "",
    every_step: bool = True,
    is_denoiser: bool = True,
    latents: int | None = None,
) -> Forecast:
    """Return what ``recipe`` would make of ``module``, a float component on the meta device, which is changed.

    Args:
        budget: at which the recipe was loaded.
        steps: sampling steps of the calibration.
        memory: bound of the activations held in memory.
        roles: a role table for an architecture that has none.
        keep: dtype in which a walk holds activations.
        network: where in ``module`` the network lies that is calibrated; "" for all of it.
        every_step: whether it is called at every sampling step, or once an image or a prompt.
        is_denoiser: whether it is what draws the pictures that are recorded.
        latents: height and width of the denoiser's latents; None for those of the config.

    Raises:
        MatchError, ConfigError: see :func:`halftone.models.roles.architecture` and :func:`halftone.models.policy.make_plan`.
    """
    found = architecture(module, roles)
    plan = _whole_plan(module, network, found, recipe)
    left = without_role(module, found.roles)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    notes = list(plan.notes)
    parts: _Parts = {}
    job: Job | None = None
    try:
        inner, cost, parts = _counted(module, network, found, plan, recipe, latents)
        samples = recipe.calibration.samples
        job = Job(
            cost, samples if every_step else -(-samples // steps), frozenset(inner.quantized()), bool(inner.operands)
        )
    except (ConfigError, CalibrationError) as error:
        notes.append(f"memory, time and what may be split are not known: {error.where}: {error.got}")
    except TypeError as error:  # of a class that takes other inputs than its name says
        notes.append(f"memory, time and what may be split are not known: {type(module).__name__}: {error}")
    if not is_denoiser:
        notes.append("to record what it is called with, the denoiser draws pictures: their time comes on top")
    always = {path for path, (_, sure) in parts.items() if sure}
    counted, more = _sizes(module, plan, {path: each for path, (each, _) in parts.items()}, always)
    layers = tuple(_layer(module, plan, recipe, path, parts.get(path, ((), False))[0]) for path in plan.layers)
    efforts = _efforts(recipe, job, steps, keep, every_step, is_denoiser) if job else {}
    spent = counted["codes"] + counted["scales"] + counted["zero_points"]
    return Forecast(
        model=type(module).__name__,
        parameters=parameters,
        recipe=recipe.name,
        title=recipe.title,
        budget=budget,
        layers=layers,
        operands=dict(
            Counter(f"{site} {spec.format}" for each in plan.operands.values() for site, spec in each.items())
        ),
        sizes=counted,
        if_split=more,
        without_role=left,
        memory=_memory(job, efforts, FLOAT_BYTES * parameters + spent, memory) if job else None,
        work={name: effort.work if effort else None for name, effort in efforts.items()},
        notes=tuple(notes),
    )


def _whole_plan(module: nn.Module, network: str, found: Architecture, recipe: Recipe) -> Plan:
    """Return the plan of the network and of what lies beside it, with paths as seen from ``module``."""
    if not network:
        return make_plan(module, found, recipe.policy)
    inner = make_plan(module.get_submodule(network), found.within(network), recipe.policy)
    layers = {f"{network}.{path}": replace(each, path=f"{network}.{path}") for path, each in inner.layers.items()}
    operands = {f"{network}.{path}": each for path, each in inner.operands.items()}
    layers |= plan_beside(module, network, found, recipe.policy).layers
    return Plan({path: layers[path] for path in found.roles}, operands, inner.notes)


def _counted(
    module: nn.Module, network: str, found: Architecture, plan: Plan, recipe: Recipe, latents: int | None
) -> tuple[Plan, ModelCost, _Parts]:
    """Return the plan of the network alone, what its call costs, and the parts of what may be split, by path in ``module``."""
    if not network:
        args, kwargs = example_inputs(module, 1, size=latents)
        parts = _splits(recipe, plan, concatenated_inputs(module, args, kwargs))
        return plan, count(module, found, args, kwargs), parts
    inner, inside = module.get_submodule(network), found.within(network)
    of_network, cost, parts = _counted(inner, "", inside, make_plan(inner, inside, recipe.policy), recipe, latents)
    return of_network, cost, {f"{network}.{path}": each for path, each in parts.items()}


def _splits(recipe: Recipe, plan: Plan, concatenated: dict[str, tuple[int, ...]]) -> _Parts:
    """Return the parts of each layer that the recipe may split, and whether it is sure to."""
    found = {}
    for method in recipe.methods().values():
        if isinstance(method, SplitShortcut) and method.chosen != "none":
            for path, parts in method.candidates(concatenated, plan).items():
                found[path] = (parts, method.chosen == "all")
    return found


def _sizes(
    module: nn.Module, plan: Plan, parts: dict[str, tuple[int, ...]], always: set[str]
) -> tuple[dict[str, int], int]:
    """Give ``module`` the tensors of the result; return its bytes by purpose, and how many more they may become."""
    schemes = {
        path: replace(scheme, segments=parts[path]) if path in always else scheme
        for path, scheme in plan.quantized().items()
    }
    prepare(module, Description(schemes, plan.operands))
    counted = sizes(module)
    more = 0
    for path, channels in parts.items():
        layer: Any = module.get_submodule(path)
        before = _stored(sizes(layer))
        layer.allocate(replace(schemes[path], segments=channels))
        more += _stored(sizes(layer)) - before
        layer.allocate(schemes[path])
    return counted, more


def _stored(counted: dict[str, int]) -> int:
    return sum(counted[purpose] for purpose in ("codes", "scales", "zero_points", "float"))


def _layer(module: nn.Module, plan: Plan, recipe: Recipe, path: str, parts: tuple[int, ...]) -> PlannedLayer:
    planned = plan.layers[path]
    layer: Any = module.get_submodule(path)
    scheme = planned.scheme
    return PlannedLayer(
        path=path,
        role=planned.role,
        inferred=planned.inferred,
        kind="linear" if isinstance(layer, nn.Linear) else "conv2d",
        shape=tuple(layer.weight_shape if scheme else layer.weight.shape),
        weight=scheme.weight.format if scheme else "float",
        input=scheme.input.format if scheme and scheme.input else "float",
        reason="" if scheme else why_float(planned.role, recipe.policy) or AT_THE_LATENTS,
        parts=parts,
        bytes=_stored(sizes(layer)),
    )


def _efforts(
    recipe: Recipe, job: Job, steps: int, keep: torch.dtype, every_step: bool, is_denoiser: bool
) -> dict[str, Effort | None]:
    """Return what each step takes: the recording of samples, then the recipe's steps."""
    forward = job.cost.forward
    recorded = forward.over(job.samples, recipe.calibration.batch)
    if every_step:
        chosen = recipe.calibration.selection().choose(steps, job.samples, generator(0, "calibration", "select"))
        trajectories = int(chosen.bincount().max())
        # The last call that is wanted is not computed.
        recorded = forward.over(trajectories, recipe.calibration.batch).times(int(chosen.max()))
    if is_denoiser:
        # Each probed call is followed by those after it, on average half of all.
        probed = forward.over(recipe.calibration.influence, recipe.calibration.influence or 1)
        recorded += probed.times(steps * (1 + min(steps, PROBES) / 2))
    # One call more for counting them.
    found: dict[str, Effort | None] = {"record": Effort(recorded + forward)}
    found |= {name: method.effort(job) for name, method in recipe.methods().items()}
    # Efforts count float32.
    share = keep.itemsize / FLOAT_BYTES
    return {name: each and replace(each, held=math.ceil(each.held * share)) for name, each in found.items()}


def _memory(job: Job, efforts: dict[str, Effort | None], weights: int, bound: int | None) -> Memory:
    def spilled(effort: Effort) -> int:
        return max(0, effort.held - (effort.held if bound is None else bound))

    known = {name: effort for name, effort in efforts.items() if effort}
    largest = max(known, key=lambda name: known[name].held - spilled(known[name]) + known[name].working)
    effort = known[largest]
    samples = math.ceil(job.cost.input_bytes * job.samples)
    return Memory(weights, samples, effort.held, spilled(effort), effort.working, largest)
