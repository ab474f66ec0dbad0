"""What is measured for each kind of row."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

import halftone
from benchmarks.contenders import contender
from benchmarks.q_diffusion.haze import brighter, hazeless, with_haze
from benchmarks.q_diffusion.pipelines import Workshop
from benchmarks.q_diffusion.plan import TIMED, Row
from halftone.artifact import sizes
from halftone.evaluate import paired
from halftone.evaluate.bench import Subject, bench, disk_bytes
from halftone.evaluate.compare import judge, trail
from halftone.evaluate.ranges import ranges_over_time
from halftone.evaluate.sample import Samples
from halftone.foundation.build import plain
from halftone.foundation.errors import CalibrationError
from halftone.models.denoiser import denoiser
from halftone.models.roles import architecture
from halftone.nn.layers import quantized_layers

# Two rows are compared by the differences of their samples' errors, so some of them are kept: four digits each.
KEPT_SAMPLES = 2000
_TRAIL_SAMPLES = 256
_AGREEMENT_SAMPLES = 8
# Two engines differ by float rounding, which now and then moves a code by one; over a whole sampling that piles up, and an
# image that sits on the edge becomes another one. What is refused is a kernel that computes something else: that would show
# in the mean over images, not in a few of them.
_AGREEMENT_DB = 30.0
_LATENCY_BATCHES = (1, 16)


def measure(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Return the metrics of a row, JSON-safe.

    Raises:
        HalftoneError: the row cannot be had; others may.
    """
    kinds: dict[str, Callable[[Row, Workshop], dict[str, Any]]] = {
        "float": _float,
        "quality": _quality,
        "trail": _trail,
        "ranges": _ranges,
        "latency": _latency,
    }
    return kinds[row.kind](row, workshop)


def _float(row: Row, workshop: Workshop) -> dict[str, Any]:
    samples = workshop.float_samples(row.samples, row.sampler)
    size = disk_bytes(workshop.folder / workshop.part)
    metrics = {"evaluation": judge(samples).plain(), "hazeless": hazeless(samples.images)}
    return {**metrics, "disk_bytes": size, "engine": "float32"}


def _quality(row: Row, workshop: Workshop) -> dict[str, Any]:
    # The float samples first: should the session end, they are there for all rows.
    against = workshop.float_samples(row.samples, row.sampler)
    engine = "torch" if workshop.settings.device == "cpu" else "simulate"
    pipe, facts = workshop.quantized(row, engine)
    module = denoiser(pipe)
    agreement = _agreement(row, pipe, workshop) if engine == "torch" and _integer(module) else None
    halftone.set_engine(module, engine)
    drawn, drawn_at = workshop.quantized_samples(row, pipe, engine)
    folder = workshop.artifact_of(row) / "model" / workshop.part
    levels = brighter(drawn.images, against.images)
    return {
        "evaluation": judge(drawn, against).plain(),
        "hazeless": hazeless(drawn.images),
        "haze": {"brighter": levels, "float_distance": with_haze(against.images, levels)},
        "image_mse": _kept(drawn, against),
        "engine": engine,
        "kernels": dict(Counter(layer.choice().name for _, layer in quantized_layers(module))),
        "agreement_with_simulate": agreement,
        "disk_bytes": disk_bytes(folder),
        "sizes": sizes(module, folder),
        "quantize": facts,
        "samples_commit": drawn_at,  # not the row's own, where another row drew them
    }


def _integer(module: torch.nn.Module) -> bool:
    """Whether any layer quantizes its input; a weight-only model runs in float on every engine."""
    return any(layer.scheme is not None and layer.scheme.input is not None for _, layer in quantized_layers(module))


def _agreement(row: Row, pipe: DiffusionPipeline, workshop: Workshop) -> dict[str, Any]:
    """Return the PSNR between the integer kernels' images and the definition's.

    Raises:
        CalibrationError: they differ by more than rounding can explain.
    """
    drawn = {}
    count = min(_AGREEMENT_SAMPLES, row.samples)
    for engine in ("simulate", "torch"):
        halftone.set_engine(denoiser(pipe), engine)
        drawn[engine] = workshop.draw(pipe, count, row.sampler)
    pair = drawn["torch"].images, drawn["simulate"].images
    found = paired.mean_psnr(*pair)
    if found < _AGREEMENT_DB:
        expected = f"images within {_AGREEMENT_DB} dB of engine simulate's, in the mean"
        raise CalibrationError(f"engine torch on {row.name}", expected, f"{found:.1f} dB", "A kernel is wrong.")
    return {"psnr": paired.psnr(*pair), "mean_psnr": found, "samples": count}


def _kept(drawn: Samples, against: Samples) -> list[float]:
    errors = paired.mse(drawn.images[:KEPT_SAMPLES], against.images[:KEPT_SAMPLES])
    return [float(f"{error:.4g}") for error in errors]


def _trail(row: Row, workshop: Workshop) -> dict[str, Any]:
    count = min(_TRAIL_SAMPLES, row.samples)
    against = workshop.float_calls(count)
    pipe, facts = workshop.quantized(row, "torch" if workshop.settings.device == "cpu" else "simulate")
    found = plain(trail(workshop.calls(pipe, count), against))
    for key in ("eps_mse", "x_mse"):
        found[key] = [float(f"{value:.6g}") for value in found[key]]
    found["x_power"] = [float(f"{np.square(x).mean():.6g}") for x in against.inputs]
    return {"trail": found, "quantize": facts}


def _ranges(row: Row, workshop: Workshop) -> dict[str, Any]:
    given, count = workshop.settings, min(_TRAIL_SAMPLES, row.samples)
    pipe = workshop.load_float().to(given.device)
    roles = {path: role.name for path, role in architecture(denoiser(pipe)).roles.items()}
    found = ranges_over_time(pipe, count, given.steps, given.noise, given.batch, progress=workshop.progress)
    return {"ranges": found.plain(), "roles": roles}


def _latency(row: Row, workshop: Workshop) -> dict[str, Any]:
    """Time float and integer models in one run, taking turns, for small and larger batches."""
    folders = {name: workshop.artifact_of(_timed(row, name)) / "model" for name in TIMED}
    for name in TIMED:
        workshop.quantized(_timed(row, name), "torch")
    part = workshop.part
    places = {"float32": workshop.folder / part, **{name: folders[name] / part for name in TIMED}}
    subjects = {name: Subject(str(workshop.folder), name) for name in ("float32", "bfloat16")}
    subjects |= {name: Subject(str(folders[name]), "torch") for name in TIMED}
    found = {}
    for batch in _LATENCY_BATCHES:
        contenders = [
            contender("float32", workshop.folder, torch.float32, batch),
            contender("bfloat16", workshop.folder, torch.bfloat16, batch),
            *(contender(name, folders[name], torch.float32, batch) for name in TIMED),
        ]
        # Memory takes a process for each: once is enough.
        asked = subjects if batch == _LATENCY_BATCHES[0] else None
        rounds = workshop.settings.rounds
        found[str(batch)] = bench(contenders, asked, places, batch, rounds, progress=workshop.progress)
    return {"bench": found, "engine": "torch"}


def _timed(row: Row, recipe: str) -> Row:
    """Return the row whose model is timed: the headline's own."""
    return Row("headline", recipe, "quality", row.budget, row.samples, recipe, seed=row.seed)
