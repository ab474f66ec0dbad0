"""``halftone evaluate``: what a model's images are worth, and how far they are from the float model's."""

import io
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.options import (
    Dtype,
    Engine,
    Guidance,
    Json,
    Model,
    Negative,
    Prompts,
    Seed,
    Steps,
    Weights,
    check_dtype,
)
from halftone.cli.output import emit, table, working
from halftone.foundation.errors import ConfigError, suggest
from halftone.foundation.prompt_file import read_prompts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from halftone.evaluate.compare import Evaluation
    from halftone.evaluate.public_metrics import PublicMetrics
    from halftone.evaluate.sample import Samples
    from halftone.foundation.progress import Progress

RECORD, PAIRS, RANGES = "halftone/evaluation.json", "halftone/samples.npz", "halftone/ranges.json"
_SHOWN = 16  # pairs kept for the report
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PAIRED = ("psnr", "mean_psnr", "ssim", "mse", "latent_mse", "lpips")
_MEASURES = (*_PAIRED, "fd", "fid", "clip")
_EXPECTATION = re.compile(r"\s*([\w.]+)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")
_Public = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="Public weights: inception-2015-12-05.pt for FID, vgg16.pt for LPIPS, clip/ for CLIP score; docs/metrics.md.",
    ),
]
_Real = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="Real pictures for the FID; the float model's by default.",
    ),
]


@dataclass(frozen=True)
class Expectation:
    """``psnr>=20``."""

    text: str
    measure: str
    comparison: str
    bound: float

    def met(self, value: float) -> bool:
        """Return whether ``value`` is on the right side of the bound."""
        return _COMPARISONS[self.comparison](value, self.bound)


def command(
    model: Model,
    against: Annotated[
        str | None, typer.Option(metavar="FLOAT_MODEL", help="The original, for paired distances from the same noise.")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Images to draw.")] = 2000,
    steps: Steps = 50,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    prompts: Prompts = None,
    guidance: Guidance = None,
    negative: Negative = None,
    engine: Engine = None,
    weights: Weights = "ready",
    dtype: Dtype = "float32",
    trail: Annotated[int, typer.Option(min=0, help="Images for the errors at each step; 0 leaves them out.")] = 16,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE>=NUMBER", help="Exit with 3 unless it holds; repeatable. " + ", ".join(_MEASURES)
        ),
    ] = None,
    public: _Public = None,
    real: _Real = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the results in MODEL, for `report`.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Measure MODEL: Fréchet distance to real images where a reference exists, and distances to the float model.

    A distribution distance alone misleads (a damaged model can score better), so give --against. The floor is the distance
    of as many real images.

    \b
    Examples:
      halftone evaluate out --against zoo:fashion-unet --samples 2000
      halftone evaluate out --against zoo:fashion-unet --samples 256 --steps 20 --expect 'psnr>=20' --expect 'fd<=40'
      halftone evaluate my-model --against original --prompts captions.txt --samples 64 --engine simulate --json
      halftone evaluate my-model --against original --prompts captions.txt --samples 2000 --public weights --real photos
    """
    wanted = [parse_expectation(text, against is not None) for text in expect or []]
    check_dtype(dtype)
    texts = read_prompts(prompts) if prompts else None
    with working() as progress:
        from dataclasses import replace

        from halftone.cli import models
        from halftone.cli.models import open_model, open_to_sample
        from halftone.evaluate.public_metrics import check
        from halftone.foundation.files import label

        check(public, real)  # before the hours of sampling
        pipe = open_to_sample(model, device, weights, dtype)
        for note in models.use_engine(pipe, engine, models.rows_of(pipe, min(batch, samples), guidance)):
            progress.say(f"note: {note}")
        other = open_model(against, device=device) if against else None
        notes = models.doubts(model, pipe, against, other) + models.cut_off(pipe, texts, negative)
        for note in (notes := notes + models.unlike_calibration(pipe, steps, guidance)):
            progress.say(f"warning: {note}")
        call = models.options(pipe, guidance_scale=guidance, negative_prompt=negative)
        how = {"count": samples, "steps": steps, "seed": seed, "batch": batch, **call}
        found, drawn, paired = _measure(pipe, other, how, texts, trail, progress)
        found = replace(found, public=_with_public_weights(drawn, paired, texts, public, real))
        results = _check(wanted, found)
        asked: dict[str, Any] = {"model": label(model), "engine": engine, "call": call, "prompts": len(texts or [])}
        asked["against"] = label(against) if against else None
        record = {**found.plain(), **asked, "expectations": results, "notes": notes}
        if folder := models.local_artifact(model, pipe) if keep else None:
            _keep(folder, record, drawn, paired, other, how, texts, progress)
    emit(record, json, lambda: _human(model, against, found, results, public is not None or real is not None))
    if not all(result["met"] for result in results):
        raise typer.Exit(3)


def parse_expectation(text: str, has_pair: bool = True) -> Expectation:
    """Return the expectation that ``text`` states.

    >>> parse_expectation("psnr >= 20").bound
    20.0

    Raises:
        ConfigError: not of that form, an unknown measure, or a paired one without a model to pair with.
    """
    found = _EXPECTATION.fullmatch(text)
    try:
        name, comparison, bound = found.groups() if found else ("", "", "")
        stated = Expectation(text, name, comparison, float(bound))
    except ValueError as error:
        raise ConfigError("--expect", "MEASURE>=NUMBER, such as psnr>=20", f"'{text}'") from error
    if name not in _MEASURES:
        raise ConfigError(f"--expect {text}", "a known measure", f"'{name}'", suggest(name, _MEASURES))
    if name in _PAIRED and not has_pair:
        raise ConfigError(f"--expect {text}", "--against FLOAT_MODEL to pair with", "none")
    return stated


def _measure(
    pipe: "DiffusionPipeline",
    other: "DiffusionPipeline | None",
    how: dict[str, Any],
    texts: list[str] | None,
    trail_samples: int,
    progress: "Progress",
) -> tuple["Evaluation", "Samples", "Samples | None"]:
    from halftone.cli.models import conditions
    from halftone.evaluate.compare import judge, trail
    from halftone.evaluate.sample import sample, trajectories

    each = conditions(pipe, how["count"], texts)
    drawn = sample(pipe, **how, progress=progress, each=each)
    paired = sample(other, **how, progress=progress, each=each) if other is not None else None
    path = None
    few = {**how, "count": min(trail_samples, how["count"])}
    if other is not None and trail_samples:
        first = conditions(pipe, few["count"], texts)
        path = trail(*(trajectories(each_pipe, **few, progress=progress, each=first) for each_pipe in (pipe, other)))
    return judge(drawn, paired, trail=path), drawn, paired


def _with_public_weights(
    drawn: "Samples", paired: "Samples | None", texts: list[str] | None, public: Path | None, real: Path | None
) -> "PublicMetrics":
    from halftone.evaluate.public_metrics import public_metrics

    count = len(drawn.images)
    prompts = None if texts is None else [texts[number % len(texts)] for number in range(count)]
    return public_metrics(drawn.images, None if paired is None else paired.images, prompts, public, real)


def _check(wanted: list[Expectation], found: "Evaluation") -> list[dict[str, Any]]:
    results = []
    for each in wanted:
        value = _value(each.measure, found)
        if value is None:
            raise ConfigError(f"--expect {each.text}", f"images that {each.measure} can be measured for", "others")
        results.append({"expected": each.text, "value": value, "met": each.met(value)})
    return results


def _value(measure: str, found: "Evaluation") -> float | None:
    """Return what was measured, None where it was not."""
    value: Any
    if measure == "fd":
        value = found.distribution
    elif measure == "fid":
        fid = found.public.fid if found.public else None
        return None if fid is None else fid.to_float if fid.to_real is None else fid.to_real
    else:
        value = getattr(found.public if measure in ("clip", "lpips") else found.paired, measure, None)
    return getattr(value, "value", value)


def _keep(
    folder: Path,
    record: dict[str, Any],
    drawn: "Samples",
    paired: "Samples | None",
    other: "DiffusionPipeline | None",
    how: dict[str, Any],
    texts: list[str] | None,
    progress: "Progress",
) -> None:
    """Leave record, first pairs of images and the float model's activation ranges in the artifact's folder."""
    from json import dumps

    import numpy as np

    from halftone.cli.models import conditions, is_quantized
    from halftone.evaluate.ranges import ranges_over_time
    from halftone.foundation.files import write_atomically
    from halftone.report.card import write_card

    if paired is None and (folder / PAIRS).exists():
        progress.say(
            f"note: {folder / RECORD} stays what it is: it is of pairs with a float model, and this run has none"
        )
        return
    if paired is not None:
        pixels = {
            name: (each.images[:_SHOWN].clip(0, 1) * 255).round().astype(np.uint8)
            for name, each in (("quantized", drawn), ("float", paired))
        }
        if texts:
            pixels["texts"] = np.array([texts[n % len(texts)] for n in range(len(pixels["float"]))])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **pixels)  # type: ignore[arg-type]
        write_atomically(folder / PAIRS, buffer.getvalue())
    if other is not None and not is_quantized(other):
        few = {**how, "count": min(_SHOWN, how["count"])}
        ranges = ranges_over_time(other, **few, each=conditions(other, few["count"], texts), progress=progress)
        write_atomically(folder / RANGES, dumps(ranges.plain()) + "\n")
    write_atomically(folder / RECORD, dumps(record, indent=1) + "\n")
    write_card(folder)


def _human(model: str, against: str | None, found: "Evaluation", results: list[dict[str, Any]], asked: bool) -> str:
    how = found.protocol
    lines = [f"{model}: {how.samples} samples, {how.scheduler}, {how.steps} steps, seed {how.seed}"]
    rows: list[list[str]] = []
    if found.distribution:
        far, floor = found.distribution, found.distribution.floor
        bounds = f"floor {floor.mean:.2f} ({floor.samples} real images)"
        rows.append([far.name, f"{far.value:.2f}", bounds])
        if found.float_distribution:
            rows.append(["  of the float model", f"{found.float_distribution.value:.2f}", "same noise"])
    else:
        lines.append("No Fréchet distance: there is no feature network for images of this shape.")
    if found.paired:
        shown = {"PSNR (dB)": found.paired.psnr, "SSIM": found.paired.ssim, "latent MSE": found.paired.latent_mse}
        for name, interval in shown.items():
            if interval is not None:
                rows.append([name, f"{interval.value:.4g}", f"{interval.low:.4g} to {interval.high:.4g} (95 %)"])
        lines.append(f"Paired with {against} from the same noise.")
    else:
        lines.append("No paired distances: give --against FLOAT_MODEL.")
    if asked and found.public:
        rows += _public_rows(found.public)
        lines += [f"{sentence}." for sentence in found.public.missing]
    elif found.distribution is None:
        lines.append("No FID, LPIPS or CLIP score: give --public FOLDER with their weights.")
    if rows:
        lines.append(table(["measure", "value", "interval or floor"], rows, right=[1]))
    for result in results:
        verdict = "met" if result["met"] else "NOT met"
        lines.append(f"expected {result['expected']}: {verdict} ({result['value']:.4g})")
    return "\n".join(lines)


def _public_rows(found: "PublicMetrics") -> list[list[str]]:
    rows = []
    if fid := found.fid:
        for name, value, words in (
            ("FID to real pictures", fid.to_real, f"{fid.samples} samples, {fid.real} real"),
            ("  of the float model", fid.float_to_real, "same noise"),
            ("  its floor", fid.floor, f"{fid.samples} real pictures"),
            ("FID to the float model's", fid.to_float, f"{fid.samples} samples of each"),
        ):
            rows += [] if value is None else [[name, f"{value:.2f}", words]]
    shown = {"LPIPS (VGG16)": found.lpips, "CLIP score": found.clip, "  of the float model": found.float_clip}
    for name, each in shown.items():
        if each is not None:
            rows.append([name, f"{each.value:.4g}", f"{each.low:.4g} to {each.high:.4g} (95 %)"])
    return rows
