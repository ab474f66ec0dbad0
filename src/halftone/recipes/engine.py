"""Run a recipe on a pipeline: record, plan, then the steps in order."""

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from halftone.calibrate.answers import check_answers
from halftone.calibrate.conditions import digests
from halftone.calibrate.influence import influence
from halftone.calibrate.record import plain_config, record
from halftone.calibrate.sampling import check_steps
from halftone.calibrate.trajectory import Trajectory
from halftone.foundation.build import plain
from halftone.foundation.errors import CalibrationError, ConfigError
from halftone.foundation.files import write_atomically
from halftone.methods.contract import Run, StepReport
from halftone.models.component import Component, component
from halftone.models.concatenation import concatenated_inputs
from halftone.models.denoiser import denoiser
from halftone.models.fingerprint import fingerprint, source_fingerprint
from halftone.models.left_float import float_denoisers
from halftone.models.policy import Plan, make_plan
from halftone.models.quant_model import QuantModel
from halftone.models.roles import Architecture, architecture
from halftone.models.surgery import replace_layers
from halftone.nn import QuantizedLayer
from halftone.recipes.beside import plan_beside
from halftone.recipes.recipe import Recipe


@dataclass
class Quantized:
    """The outcome of a recipe: the component (changed in place) and what happened.

    Attributes:
        module: the component of the pipeline.
        source: fingerprint of the component in float.
        layers: facts by path.
        left_float: what stays float although the policy, or the reader, may think otherwise; sentences.
        influence: of each call on the image, where the calibration has measured it.
    """

    module: nn.Module
    recipe: Recipe
    identity: dict[str, Any]
    source: str
    reports: dict[str, StepReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_float: list[str] = field(default_factory=list)
    influence: list[float] | None = None

    def roles(self) -> dict[str, str]:
        """Return every layer's role by path; inferred ones end in ``?``."""
        return {path: facts["role"] + ("?" if facts["inferred"] else "") for path, facts in self.layers.items()}

    def plain(self) -> dict[str, Any]:
        """Return all of it but the module, JSON-safe."""
        return {
            "recipe": plain(self.recipe),
            "trajectory": self.identity,
            "source": self.source,
            "steps": {name: plain(report) for name, report in self.reports.items()},
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "layers": self.layers,
            "left_float": self.left_float,
            "influence": self.influence,
        }


def run_recipe(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    steps: int,
    run: Run,
    resume: bool = False,
    each: Mapping[str, Sequence[Any]] | None = None,
    roles: Path | None = None,
    name: str | None = None,
    later: Collection[str] = (),
) -> Quantized:
    """Quantize one component of the pipeline in place.

    Args:
        steps: sampling steps of the calibration.
        resume: go on with what an earlier run left in ``run.work``.
        each: pipeline arguments with one value a trajectory, such as prompts.
        roles: a role table for an architecture that has none.
        name: of the component; None is the denoiser.
        later: components that will be quantized after this one, and so are not noted as left float.

    Raises:
        ConfigError: no such component; it is quantized already; or ``run.work`` holds another run's work, or any without
            ``resume``.
        CalibrationError, MatchError: see the methods and the policy.
    """
    part = component(pipe, name)
    module = part.network
    if any(isinstance(child, QuantizedLayer) for child in part.owner.modules()):
        where, wanted = ("model", "a float denoiser") if name is None else (f"component {name}", "a float one")
        raise ConfigError(where, wanted, "one that Halftone has quantized", "Load the original model.")
    part.owner.eval()
    _refuse_parts(part)
    methods = recipe.methods()
    whole = architecture(part.owner, roles)
    found = whole.within(part.path) if part.path else whole
    plan = make_plan(module, found, recipe.policy)
    check_steps(pipe, steps)
    _claim_work(run, resume, recipe, pipe, module, steps, each)
    run.device = next(module.parameters()).device
    source = source_fingerprint(part.owner)
    began = time.monotonic()
    data = _trajectory(pipe, part, recipe, steps, run, each).to(run.device)
    result = Quantized(part.owner, recipe, data.identity, source, seconds={"record": time.monotonic() - began})
    if data.influence is not None:
        result.influence = [float(f"{weight:.4g}") for weight in data.influence]
    result.left_float = _left_float(pipe, part, plan, later)
    for sentence in result.left_float:
        run.progress.say(f"note: {sentence}")
    first = data.rows(slice(0, 1))
    concatenated = concatenated_inputs(module, *first)
    model = QuantModel.open(module, found, plan)
    model.concatenated = concatenated
    check_answers(module, data)
    for name, method in methods.items():
        began, run.step = time.monotonic(), name
        run.progress.say(f"step {name}: {recipe.steps[name]['method']}")
        result.reports[name] = method.apply(model, data, run)
        result.seconds[name] = time.monotonic() - began
        for sentence in result.reports[name].notes:
            run.progress.say(f"note: step {name}: {sentence}")
    result.layers = {f"{part.path}.{path}".lstrip("."): facts for path, facts in _layers(model).items()}
    model.close()
    result.layers |= _round_beside(part, recipe, whole)
    return result


def _refuse_parts(part: Component) -> None:
    """Raise an error for an autoencoder that decodes in pieces, or has weights beside its decoder that cannot be rounded."""
    for option in ("slicing", "tiling"):
        if not part.every_step and getattr(part.owner, f"use_{option}", False):
            fix = f"Call its disable_{option}() before quantizing; enable_{option}() works on the result."
            raise CalibrationError(f"component {part.name}", "one that decodes whole images", f"{option} enabled", fix)
    for path, weight in part.owner.named_parameters():
        if not part.inside(path) and not torch.isfinite(weight).all():
            fix = "Check the float model."
            raise CalibrationError(f"{path} of {part.name}", "finite numbers", "NaN or infinity", fix)


def _left_float(pipe: DiffusionPipeline, part: Component, plan: Plan, later: Collection[str]) -> list[str]:
    others = [
        f"the component '{each.path}' ({each.kind}) stays float: a recipe quantizes one component"
        for each in float_denoisers(pipe)
        if part.network is denoiser(pipe) and each.path not in later
    ]
    return [*plan.notes, *others]


def _round_beside(part: Component, recipe: Recipe, whole: Architecture) -> dict[str, dict[str, Any]]:
    """Round what lies beside the network to nearest (:mod:`halftone.recipes.beside`); return the facts of these layers."""
    plan = plan_beside(part.owner, part.path, whole, recipe.policy)
    facts = {
        path: {"role": p.role, "inferred": p.inferred, "kept": p.scheme is None} for path, p in plan.layers.items()
    }
    schemes = plan.quantized()
    weights = {path: part.owner.get_parameter(f"{path}.weight").detach().float() for path in schemes}
    for path, layer in replace_layers(part.owner, schemes).items():
        layer.hold_nearest(weights[path], schemes[path], "min_max")
        facts[path]["weight_error"] = _weight_error(layer, weights[path])
    return facts


def _layers(model: QuantModel) -> dict[str, dict[str, Any]]:
    facts = {}
    for path, planned in model.plan.layers.items():
        facts[path] = {"role": planned.role, "inferred": planned.inferred, "kept": planned.scheme is None}
        if planned.scheme is None:
            continue
        facts[path]["weight_error"] = _weight_error(model.layer(path), model.originals[path])
    return facts


def _weight_error(layer: QuantizedLayer, weight: torch.Tensor) -> float:
    error = (layer.dequantized_weight() - weight).norm() / weight.norm().clamp(min=1e-12)
    return round(float(error), 5)


def _trajectory(
    pipe: DiffusionPipeline,
    part: Component,
    recipe: Recipe,
    steps: int,
    run: Run,
    each: Mapping[str, Sequence[Any]] | None,
) -> Trajectory:
    saved = run.work / "trajectory.safetensors" if run.work else None
    if saved is not None and saved.exists():
        return Trajectory.load(saved)
    how = recipe.calibration
    # What is called once an image is recorded over as many images as the denoiser would be.
    samples = how.samples if part.every_step else -(-how.samples // steps)
    data = record(
        pipe,
        how.selection(),
        samples,
        steps,
        run.seed,
        how.batch,
        run.progress,
        each,
        part.network,
        # What is called once an image or a prompt knows no guidance.
        how.halves if part.every_step else "both",
        **how.arguments,
    )
    if part.path:
        data = replace(data, identity={**data.identity, "network": part.path})
    if how.influence and part.network is denoiser(pipe):
        found = influence(pipe, how.influence, steps, run.seed, progress=run.progress, each=each, **how.arguments)
        data = replace(data, influence=found)
    if saved is not None:
        data.save(saved)
        data = Trajectory.load(saved)
    return data


def _claim_work(
    run: Run,
    resume: bool,
    recipe: Recipe,
    pipe: DiffusionPipeline,
    module: nn.Module,
    steps: int,
    each: Mapping[str, Sequence[Any]] | None,
) -> None:
    """Make sure that the work folder is this run's: the same model, sampler, recipe, seed and prompts."""
    if run.work is None:
        return
    facts = {
        "recipe": plain(recipe),
        "model": fingerprint(module),
        "sampler": [type(pipe).__name__, type(pipe.scheduler).__name__, plain_config(pipe.scheduler)],
        "seed": run.seed,
        "steps": steps,
        "keep": str(run.keep),
        "each": digests(each or {}),
    }
    mine = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    claim = run.work / "claim.json"
    if claim.exists():
        theirs = json.loads(claim.read_text()).get("run")
        if theirs != mine:
            fix = f"Delete {run.work} or choose another output."
            raise ConfigError(
                str(run.work), "unfinished work of this very run", "that of another recipe, model, sampler or seed", fix
            )
        if not resume:
            raise ConfigError(str(run.work), "no unfinished work", "some", "Go on with --resume, or delete the folder.")
        return
    if resume:
        run.progress.say(f"note: there is nothing to resume in {run.work}: starting anew")
    write_atomically(claim, json.dumps({"run": mine, "recipe": recipe.name}))
