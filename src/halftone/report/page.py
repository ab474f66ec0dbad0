"""One self-contained page about a quantized model: nothing on it is loaded from anywhere."""

import math
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from halftone.foundation.files import write_atomically
from halftone.report import inside, pictures, sections
from halftone.report.layers import Model, read_model
from halftone.report.pieces import COMMANDS, Pieces, mapping, number, read_pieces
from halftone.report.tables import Markup, escaped, figures, interval, join, megabytes, tag

_DASH = Markup('<span class="none">–</span>')


def write_report(folder: Path, out: Path) -> None:
    """Write one HTML file about the quantized model in ``folder``.

    What is shown comes from ``folder/halftone``: ``quantize.json``, and where they exist ``evaluation.json``, ``samples.npz``,
    ``bench.json``, ``ranges.json`` and ``inspection.json``. For each that does not, the page names the command that makes it.

    Args:
        out: the file, replaced if it exists.

    Raises:
        ConfigError: not a folder of a model that Halftone has quantized.
        ArtifactError: a record or the model is damaged.
        OutputError: the page cannot be written.
    """
    write_atomically(out, page(read_pieces(Path(folder))))


def page(pieces: Pieces) -> str:
    """Return the page as HTML."""
    model = read_model(pieces)
    template = Template(resources.files("halftone.report").joinpath("template.html").read_text(encoding="utf-8"))
    body = [
        sections.samples(pieces),
        sections.quality(pieces),
        sections.cost(pieces, model),
        inside.blocks(pieces, model),
        inside.ranges(pieces),
        inside.layers(pieces, model),
        inside.recipe(pieces),
        inside.provenance(pieces, _version()),
    ]
    return template.substitute(
        title=escaped(f"{name_of(pieces)} – Halftone"),
        name=escaped(name_of(pieces)),
        kicker=_kicker(pieces, model),
        print=_print(pieces),
        headline=tag("dl", *_headline(pieces, model), class_="headline"),
        sections=join(body, "\n"),
    )


def name_of(pieces: Pieces) -> str:
    """Return what the model is called: the record's ``model``, else the folder's name."""
    given = pieces.quantize.get("model")
    return given if isinstance(given, str) and given else pieces.folder.resolve().name


def _version() -> str:
    try:
        return metadata.version("halftone")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _kicker(pieces: Pieces, model: Model) -> Markup:
    """Return the line under the name: recipe, widths, budget."""
    recipe = mapping(pieces.quantize, "recipe")
    parts: list[Any] = [recipe.get("title") or recipe.get("name") or "an unnamed recipe"]
    facts: list[Any] = [tag("code", recipe["name"])] if recipe.get("name") and recipe.get("title") else []
    facts += [model.bits] if model.bits else []
    facts += [f"{budget} budget"] if (budget := pieces.quantize.get("budget")) else []
    seconds = [number(value) or 0.0 for value in mapping(pieces.quantize, "seconds").values()]
    facts += [f"quantized in {_duration(sum(seconds))}"] if seconds else []
    return join([tag("p", *parts, class_="standfirst"), tag("p", join(facts, " · "), class_="facts-line")])


def _print(pieces: Pieces) -> Markup:
    text = "Samples, the float model's in cyan and the quantized one's in magenta: where they agree, two inks make one picture."
    key = tag("p", text, class_="key") if pieces.samples else ""
    return join([pictures.print_strip(pieces.samples), key])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _headline(pieces: Pieces, model: Model) -> list[Markup]:
    return [_size(model), *_speed(pieces), _psnr(pieces), _distance(pieces)]


def _stat(label: str, value: Any, unit: str, *detail: Any) -> Markup:
    """Return one large number: an absent value is a dash."""
    large = tag("dd", value, tag("small", unit) if unit else "", class_="value")
    return tag("div", tag("dt", label), large, tag("dd", *detail, class_="detail"))


def _missing(label: str, piece: str) -> Markup:
    return _stat(label, _DASH, "", "not measured yet: ", tag("code", COMMANDS[piece]))


def _size(model: Model) -> Markup:
    if model.sizes is None:
        return _stat("Size on disk", _DASH, "", "the folder holds only records")
    before = megabytes(4 * model.sizes.elements)
    value, _, unit = str(megabytes(model.sizes.total)).partition(" ")
    smaller = 4 * model.sizes.elements / max(model.sizes.total, 1)
    half = megabytes(2 * model.sizes.elements)
    return _stat("Size on disk", value, f" {unit}", f"{smaller:.1f} × smaller than fp32 ({before}; bf16 {half})")


def _speed(pieces: Pieces) -> list[Markup]:
    """Return the fastest engine's ratios, against bf16 and against fp32: never one without the other."""
    rows = [row for row in sections.bench_rows(pieces) if row.get("name") not in sections.BASELINES]
    real = [row for row in rows if row.get("name") != "simulate"] or rows
    if not real:
        return [_missing("Speed", "bench")]
    best = min(real, key=lambda row: number(row.get("median")) or math.inf)
    stats = []
    for baseline, short in sections.BASELINES.items():
        ratio = mapping(best, "speedup", baseline)
        value = number(ratio.get("value"))
        if value is None:
            continue
        bounds = interval({}, number(ratio.get("low")), number(ratio.get("high")))
        detail = [bounds, Markup("<br>")] if bounds else []
        engine = f"{figures(number(best.get('median')))} ms a call, engine {best.get('name')}"
        stats.append(_stat(f"Speed against {short}", figures(value), " ×", *detail, engine))
    return stats or [_missing("Speed", "bench")]


def _psnr(pieces: Pieces) -> Markup:
    found = mapping(pieces.evaluation, "paired", "psnr")
    value = number(found.get("value"))
    if value is None:
        return _missing("Paired PSNR", "evaluation")
    count = mapping(pieces.evaluation, "protocol").get("samples")
    bounds = interval(found, number(found.get("low")), number(found.get("high")))
    detail = [bounds, Markup("<br>")] if bounds else []
    shown = "∞" if math.isinf(value) else f"{value:.1f}"
    return _stat("Paired PSNR", shown, " dB", *detail, f"to the float model's {count} samples, same noise")


def _distance(pieces: Pieces) -> Markup:
    found = mapping(pieces.evaluation, "distribution")
    value = number(found.get("value"))
    if value is None and pieces.evaluation:
        return _stat("Distribution distance", _DASH, "", "no feature network took part in the evaluation")
    if value is None:
        return _missing("Distribution distance", "evaluation")
    floor = mapping(found, "floor")
    count = mapping(pieces.evaluation, "protocol").get("samples")
    original = number(mapping(pieces.evaluation, "float_distribution").get("value"))
    beside = f"float model {figures(original)}; " if original is not None else ""
    real = f"floor {figures(number(floor.get('mean')))}: real images, {floor.get('samples')} of them"
    detail = f"{beside}{real}; here {count} samples"
    return _stat(str(found.get("name", "Fréchet distance")), figures(value), "", detail)
