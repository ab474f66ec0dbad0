"""The study as data: every row of every section, in the order in which they are worth having."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from benchmarks.q_diffusion.settings import Settings
from halftone.recipes import BUDGETS

Kind = Literal["float", "quality", "trail", "ranges", "latency"]
HEADLINE = ("w4a8", "w4a32", "w8a8", "w3a8")
METHODS = ("q-diffusion", "gptq", "rtn")
# Nothing in this recipe looks at a calibration sample, so another seed gives the same model bit by bit.
SEEDLESS = ("rtn-w4a32",)
# One model of each format: the same kernels run whoever found the numbers, so the cheap ones serve.
TIMED = ("q-diffusion-w4a8", "q-diffusion-w8a8", "rtn-w4a32", "gptq-w3a8")


@dataclass(frozen=True)
class Row:
    """One row: what to quantize, how to sample it, and what it stands for in a table.

    Attributes:
        kind: what is measured.
        recipe, overrides: None and nothing for the float model.
        seed: of the calibration.
        labels: the levels of the factors that the section varies.
        calibrated_for, sampler: ``ddim`` or ``dpm``.
    """

    section: str
    name: str
    kind: Kind
    budget: str
    samples: int
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    seed: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    calibrated_for: str = "ddim"
    sampler: str = "ddim"


def rows(settings: Settings) -> list[Row]:
    """Return the rows of the sections asked for, in order."""
    makers = {
        "headline": _headline,
        "haze": _haze,
        "budgets": _budgets,
        "edges": _edges,
        "bias": _bias,
        "trajectory": _trajectory,
        "timesteps": _timesteps,
        "ablation": _ablation,
        "ranges": _ranges,
        "samplers": _samplers,
    }
    found = [row for section in settings.sections for row in makers[section](settings)]
    assert len({(row.section, row.name) for row in found}) == len(found)
    return [row for row in found if fnmatchcase(f"{row.section}/{row.name}", settings.pattern)]


def _row(settings: Settings, section: str, name: str, kind: Kind, recipe: str | None = None, **more: object) -> Row:
    seed = int(more.pop("seed", settings.seeds[0]))  # type: ignore[call-overload]
    samples = settings.samples_of(section, seed)
    return Row(section, name, kind, settings.budget_of(section), samples, recipe, seed=seed, **more)  # type: ignore[arg-type]


def _headline(settings: Settings) -> Iterator[Row]:
    yield _row(settings, "headline", "float", "float", labels={"method": "float", "bits": "float"})
    for seed in settings.seeds:
        if len(settings.seeds) > 1 and seed == settings.seeds[1]:
            # The float model on as few samples as the further seeds get: a Fréchet distance depends on their number.
            yield _row(settings, "headline", "float-few", "float", seed=seed, labels={"method": "float", "bits": "few"})
        for bits, method in itertools.product(HEADLINE, METHODS):
            recipe = f"{method}-{bits}"
            first = seed == settings.seeds[0]
            if not first and recipe in SEEDLESS:
                continue
            labels = {"method": method, "bits": bits, "seed": "main" if first else "further"}
            yield _row(settings, "headline", f"{recipe}-seed{seed}", "quality", recipe, seed=seed, labels=labels)
        if seed == settings.seeds[0]:
            # Once the models are there: before the further seeds, which take longest.
            yield _row(settings, "headline", "latency", "latency")


def _haze(settings: Settings) -> Iterator[Row]:
    """The headline's models at two widths: what of their distance is in pixels that are all but black."""
    yield _row(settings, "haze", "float", "float", labels={"method": "float"})
    for bits, method in itertools.product(("w4a8", "w8a8"), reversed(METHODS)):
        labels, recipe = {"method": method, "bits": bits}, f"{method}-{bits}"
        yield _row(settings, "haze", recipe, "quality", recipe, labels=labels)


BUDGETED = ("w4a8", "w4a32")


def _budgets(settings: Settings) -> Iterator[Row]:
    """Q-Diffusion at the budgets that the headline does not have; one that takes many hours must be asked for.

    Asked for is a budget by ``--budget``, unless the headline's rows get it in the same run, or by its name in ``--rows``.
    """
    yield _row(settings, "budgets", "float", "float", labels={"method": "float", "bits": "float"})
    for budget, bits in itertools.product(BUDGETS, BUDGETED):
        if settings.budget is None:
            asked = budget not in ("paper", settings.budget_of("headline"))
        else:
            asked = budget == settings.budget and "headline" not in settings.sections
        if asked or budget in settings.pattern:
            recipe = f"q-diffusion-{bits}"
            labels = {"method": "q-diffusion", "bits": bits, "budget": budget}
            row = _row(settings, "budgets", f"{recipe}-{budget}", "quality", recipe, labels=labels)
            yield replace(row, budget=budget)


def _edges(settings: Settings) -> Iterator[Row]:
    """The first and the last layer with the bits of all others, and wide (decision 0011); and what more width is worth."""
    narrow = (
        "policy.1.weight={format: uint4, granularity: channel, zero: asymmetric}",
        "policy.1.input={format: uint8}",
    )
    yield _row(settings, "edges", "float", "float", labels={"method": "float"})
    for method, (edges, overrides) in itertools.product(("rtn", "q-diffusion"), (("narrow", narrow), ("wide", ()))):
        labels = {"method": method, "bits": "w4a8", "edges": edges}
        name, recipe = f"{method}-w4a8-{edges}", f"{method}-w4a8"
        yield _row(settings, "edges", name, "quality", recipe, overrides=overrides, labels=labels)
    labels = {"method": "q-diffusion", "bits": "w4a8", "edges": "wide, shortcuts as well"}
    recipe = "q-diffusion-w4a8-wide-shortcuts"
    yield _row(settings, "edges", recipe, "quality", recipe, labels=labels)


def _bias(settings: Settings) -> Iterator[Row]:
    """Rounding to nearest with and without bias correction, which the paper's baseline does not have (decision 0013)."""
    corrected = ("steps.bias={method: corrections/bias}",)
    yield _row(settings, "bias", "float", "float", labels={"method": "float"})
    for bits, (bias, overrides) in itertools.product(("w4a8", "w8a8"), (("none", ()), ("corrected", corrected))):
        labels = {"method": "rtn", "bits": bits, "bias": bias}
        yield _row(settings, "bias", f"rtn-{bits}-{bias}", "quality", f"rtn-{bits}", overrides=overrides, labels=labels)


def _trajectory(settings: Settings) -> Iterator[Row]:
    for method, recipe, bits in (
        ("q-diffusion", "q-diffusion-w4a32", 4),
        ("linear", "rtn-w4a32", 4),
        ("linear", "rtn-w4a32", 5),
        ("linear", "rtn-w4a32", 8),
    ):
        overrides = () if bits == 4 else (f"policy.0.weight.format=uint{bits}",)
        labels = {"method": method, "bits": str(bits)}
        yield _row(settings, "trajectory", f"{method}-w{bits}a32", "trail", recipe, overrides=overrides, labels=labels)


def _timesteps(settings: Settings) -> Iterator[Row]:
    """At W4A8; what the timesteps are worth to the weights alone is in the ablation."""
    yield _row(settings, "timesteps", "float", "float", labels={"bits": "float"})
    selections = {
        "uniform": (),
        "first-half": ("calibration.select={name: part, which: first, share: 0.5}",),
        "middle-half": ("calibration.select={name: part, which: middle, share: 0.5}",),
        "last-half": ("calibration.select={name: part, which: last, share: 0.5}",),
        "random": ("calibration.select=random",),
        "normal": ("calibration.select=normal",),
    }
    for select, overrides in selections.items():
        labels = {"bits": "w4a8", "select": select, "samples": "budget"}
        name = f"w4a8-{select}"
        yield _row(settings, "timesteps", name, "quality", "q-diffusion-w4a8", overrides=overrides, labels=labels)
    for count in (64, 256, 1024):
        labels = {"bits": "w4a8", "select": "uniform", "samples": str(count)}
        overrides = (f"calibration.samples={count}",)
        name = f"w4a8-uniform-{count}"
        yield _row(settings, "timesteps", name, "quality", "q-diffusion-w4a8", overrides=overrides, labels=labels)
    # Whether it is the last step that asks for so many; with the budget's own it stands in the ablation.
    labels = {"bits": "w4a8", "select": "uniform", "samples": "1024", "without": "network"}
    overrides, recipe = ("calibration.samples=1024",), "q-diffusion-w4a8-no-network"
    name = "w4a8-without-network-1024"
    yield _row(settings, "timesteps", name, "quality", recipe, overrides=overrides, labels=labels)


CALIBRATIONS = ("uniform", "first-tenth")
SPLITS = ("auto", "none")
RECONSTRUCTIONS = ("ada_round", "nearest")
ACTIVATIONS = ("min_max", "shrink", "moving_average")  # the recipe's own first
WHOLE = "nothing"  # what the whole method is without

# What the whole method is measured without: recipes of the library, then overrides.
_REMOVED = {
    "network": "no-network",
    "influence": "no-influence",
    "judging": "no-judging",
    "ranges by the output": "no-ranges",
    "block reconstruction and GPTQ": "no-reconstruction",
    "GPTQ": "no-gptq",
    "split": "no-split",
    "all but the first timesteps": "no-timesteps",
    "shrink search": "no-shrink",
    "quantized operands": "no-operands",
    "bias correction": "no-bias",
    "network, but with learned steps": "learned-steps",
    "anything not in the paper": "published",
}
# As q-diffusion-w4a8-no-blocks: a second GPTQ finds what the first one found.
_CHANGED = {"block reconstruction": ("steps.reconstruct={method: rounding/gptq}",)}


def _ablation(settings: Settings) -> Iterator[Row]:
    """The whole method without one part each, and the published method's own three factors crossed."""
    yield _row(settings, "ablation", "float", "float", labels={"bits": "float"})
    yield _without(settings, WHOLE, "q-diffusion-w4a8")
    for what, name in _REMOVED.items():
        yield _without(settings, what, f"q-diffusion-w4a8-{name}")
    for what, overrides in _CHANGED.items():
        yield _without(settings, what, "q-diffusion-w4a8", overrides)
    yield _without(settings, "float targets, in GPTQ alone", "gptq-w4a8", ("steps.gptq.targets=own",))
    yield from (_activations(settings, estimator) for estimator in ACTIVATIONS[1:])
    for bits, *factors in itertools.product(("w4a8", "w4a32"), CALIBRATIONS, SPLITS, RECONSTRUCTIONS):
        calibration, split, reconstruction = factors
        if not reads_calibration(bits, split, reconstruction) and calibration != CALIBRATIONS[0]:
            continue
        labels = {"bits": bits, "calibration": calibration, "split": split, "reconstruction": reconstruction}
        overrides = _cell(bits, calibration, split, reconstruction)
        recipe = f"q-diffusion-{bits}-no-network"
        yield _row(
            settings, "ablation", "-".join(labels.values()), "quality", recipe, overrides=overrides, labels=labels
        )


def reads_calibration(bits: str, split: str, reconstruction: str) -> bool:
    """Whether a cell's model depends on the calibration samples at all: if not, one calibration stands for all."""
    return bits != "w4a32" or split == "auto" or reconstruction != "nearest"


def _without(settings: Settings, what: str, recipe: str, overrides: tuple[str, ...] = ()) -> Row:
    name = f"w4a8-without-{what.replace(',', '').replace(' ', '-').lower()}"
    labels = {"bits": "w4a8", "without": what}
    return _row(settings, "ablation", name, "quality", recipe, overrides=overrides, labels=labels)


def _activations(settings: Settings, estimator: str) -> Row:
    """The full method with another way to find the activations' ranges."""
    name, labels = f"w4a8-activations-{estimator.replace('_', '-')}", {"bits": "w4a8", "activations": estimator}
    overrides = (f"steps.activations.range={estimator}",)
    return _row(settings, "ablation", name, "quality", "q-diffusion-w4a8", overrides=overrides, labels=labels)


def _cell(bits: str, calibration: str, split: str, reconstruction: str) -> tuple[str, ...]:
    """Return the overrides of one cell."""
    # What is not in the published method and reads the calibration is left out: as a step that finds what the one before has.
    overrides = ["steps.ranges={method: ranges/static, range: min_max}"] if bits == "w4a8" else []
    overrides += [] if split == "auto" else [f"steps.split.select={split}"]
    if calibration != CALIBRATIONS[0]:
        overrides.append("calibration.select={name: part, which: first, share: 0.1}")
    if reconstruction == "nearest":
        # Rounding to nearest again with the same range changes nothing: both steps are there, and empty.
        nearest = "{method: rounding/nearest, range: shrink}"
        overrides += [f"steps.gptq={nearest}", f"steps.reconstruct={nearest}"]
    return tuple(overrides)


def _ranges(settings: Settings) -> Iterator[Row]:
    yield _row(settings, "ranges", "float", "ranges")


_TIME_IN_FLOAT = (
    "{roles: '*', weight: {format: uint4, granularity: channel, zero: asymmetric}}",
    "{roles: [conv_in, conv_out], weight: {format: uint8, granularity: channel, zero: symmetric}, optional: true}",
    "{roles: [time.*, resnet.time], keep: true}",
)


def _samplers(settings: Settings) -> Iterator[Row]:
    for sampler in ("dpm", "ddim"):
        yield _row(settings, "samplers", f"float-{sampler}", "float", sampler=sampler, labels={"bits": "float"})
    for bits in ("w4a8", "w4a32"):
        for calibrated, sampler in (("ddim", "dpm"), ("dpm", "dpm"), ("ddim", "ddim")):
            name = f"{bits}-{calibrated}-to-{sampler}"
            yield _row(
                settings,
                "samplers",
                name,
                "quality",
                f"q-diffusion-{bits}",
                labels={"bits": bits},
                calibrated_for=calibrated,
                sampler=sampler,
            )
    for calibrated in (
        "ddim",
        "dpm",
    ):  # whether it is the step over the whole network that makes weights one sampler's own
        name, labels = f"gptq-w4a32-{calibrated}-to-dpm", {"bits": "w4a32", "method": "gptq"}
        how = {"calibrated_for": calibrated, "sampler": "dpm"}
        yield _row(settings, "samplers", name, "quality", "gptq-w4a32", labels=labels, **how)
    # Whether it is the layers that read the timestep alone, of which a calibration sees as many inputs as there are calls.
    labels = {"bits": "w4a32", "method": "gptq", "time": "float"}
    overrides, how = (f"policy=[{', '.join(_TIME_IN_FLOAT)}]",), {"calibrated_for": "ddim", "sampler": "dpm"}
    name = "gptq-w4a32-time-float-ddim-to-dpm"
    yield _row(settings, "samplers", name, "quality", "gptq-w4a32", overrides=overrides, labels=labels, **how)
