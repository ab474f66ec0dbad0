"""The sections of the page: each takes the records and returns HTML, and says what is missing when it is."""

import math
from collections.abc import Iterator
from typing import Any

from halftone.report import pictures, plots
from halftone.report.layers import Model
from halftone.report.pieces import COMMANDS, Pieces, mapping, number, numbers
from halftone.report.tables import Column, Markup, figures, interval, join, megabytes, table, tag

_PAIRS = 12  # pictures of each model on the page
_GAIN = 4  # of the difference pictures
BASELINES = {"bfloat16": "bf16", "float32": "fp32"}


def section(title: str, lead: Any, *content: Any) -> Markup:
    """Return a section with its title and a sentence of explanation in the margin."""
    margin = tag("div", tag("h2", title), tag("p", lead), class_="margin")
    return tag("section", margin, tag("div", *content, class_="body"))


def absent(piece: str, what: str) -> Markup:
    """Return a paragraph that says what is not on the page and what adds it."""
    return tag("p", f"{what} to show yet. Made by ", tag("code", COMMANDS[piece]), ".", class_="absent")


def figure(drawn: Markup, title: Any, note: str = "") -> Markup:
    """Return a small figure with its title above it."""
    return tag("figure", tag("figcaption", title, tag("span", note) if note else ""), drawn)


# Samples.


def samples(pieces: Pieces) -> Markup:
    """Return pairs of pictures from the same noise, to look at side by side, wiped over each other, or subtracted."""
    title, lead = "Samples", "The float model and the quantized one, each sampling on its own from the same noise."
    pairs = pieces.samples
    if pairs is None:
        return section(title, lead, absent("samples", "No samples"))
    height, width = pairs.original.shape[2:]
    shown = []
    for number_, psnr in enumerate(pairs.psnr()[:_PAIRS]):
        one, other = pairs.original[number_], pairs.quantized[number_]
        text = pairs.texts[number_] if pairs.texts else ""
        shown.append(_pair(number_ + 1, one, other, psnr, text))
    controls = Markup(
        '<div class="controls" hidden><div role="group" aria-label="view">'
        '<button type="button" data-view="beside" aria-pressed="true">Side by side</button>'
        '<button type="button" data-view="wipe" aria-pressed="false">Wipe</button>'
        f'<button type="button" data-view="difference" aria-pressed="false">Difference ×{_GAIN}</button></div>'
        '<label class="wipe">float <input type="range" min="0" max="100" value="50"> quantized, all pairs</label></div>'
    )
    kind = "pairs small" if max(height, width) <= 128 else "pairs"
    note = f"The first {len(shown)}, not selected. "
    note += f"{width} × {height} pixels" + (", enlarged without smoothing." if max(height, width) <= 128 else ".")
    grid = tag("div", *shown, class_=kind, data_view="beside")
    return section(title, lead, controls, grid, tag("p", note, class_="note"))


def _pair(place: int, original: Any, quantized: Any, psnr: float, text: str) -> Markup:
    apart = pictures.difference(quantized, original, _GAIN)
    images = [
        tag("span", Markup(f'<img class="{kind}" src="{pictures.data_uri(data)}" alt="{kind} sample {place}">'))
        for kind, data in (("float", original), ("quantized", quantized), ("difference", apart))
    ]
    slider = Markup(f'<input class="own" type="range" min="0" max="100" value="50" aria-label="wipe sample {place}">')
    caption = tag("figcaption", f"{text}, " if text else "", "identical" if math.isinf(psnr) else f"{psnr:.1f} dB")
    return tag("figure", tag("div", *images, class_="stack"), slider, caption)


# Quality.


def quality(pieces: Pieces) -> Markup:
    """Return the distances, and the errors along the trajectory."""
    title = "Quality"
    lead = (
        "A damaged model can score a better distribution distance than the original, so none stands here without the "
        "paired distance to the float model."
    )
    record = pieces.evaluation
    if not record:
        none = [absent("evaluation", "No distances"), absent("trail", "No errors along the trajectory")]
        return section(title, lead, *none)
    rows = [*_paired_rows(mapping(record, "paired")), *_distribution_rows(record), *_public_rows(record)]
    columns = [Column("measure"), Column("value", True), Column("95 % interval", True)]
    body = [[join([name, tag("span", meaning, class_="hint")]), *cells] for name, meaning, *cells in rows]
    content = [*_notes(record), *([table(columns, body)] if rows else [])]
    if not record.get("paired"):
        content.append(absent("evaluation", "No paired distances"))
    content += list(_expectations(record))
    trail = mapping(record, "trail")
    if trail:
        state, output = numbers(trail.get("x_mse")), numbers(trail.get("eps_mse"))
        drawn = [
            figure(plots.trail(state, "error of the denoiser's input by call"), "What the denoiser is given"),
            figure(plots.trail(output, "error of the denoiser's output by call"), "What it answers"),
        ]
        content += [tag("h3", "Along the trajectory"), tag("div", *drawn, class_="multiples two")]
        note = f"Mean square error against the float model, {trail.get('samples')} samples, both sampling on their own."
        content.append(tag("p", note, class_="note"))
    else:
        content.append(absent("trail", "No errors along the trajectory"))
    return section(title, lead, *content)


def _notes(record: dict[str, Any]) -> Iterator[Markup]:
    """Yield what a reader of the numbers must know, such as that they are against another model."""
    listed = record.get("notes")
    for said in listed if isinstance(listed, list) else []:
        yield tag("p", tag("strong", "Note: "), str(said), class_="note")


def _expectations(record: dict[str, Any]) -> Iterator[Markup]:
    """Yield what was demanded of the numbers, if anything was, and whether it came true."""
    listed = record.get("expectations")
    stated = [mapping(entry) for entry in listed] if isinstance(listed, list) else []
    if stated:
        verdicts = [tag("b", "met" if entry.get("met") else "NOT met") for entry in stated]
        rows = [[e.get("expected"), figures(number(e.get("value"))), v] for e, v in zip(stated, verdicts, strict=True)]
        yield table([Column("expected"), Column("found", True), Column("")], rows)


def _paired_rows(paired: dict[str, Any]) -> Iterator[list[Any]]:
    known = (
        ("psnr", "paired PSNR", " dB", "of the error pooled over all pairs; higher is nearer"),
        ("ssim", "paired SSIM", "", "structural similarity, 1 for equal pictures"),
        ("mse", "image MSE", "", "pictures in [0, 1]"),
        ("latent_mse", "latent MSE", "", "what the scheduler returned last, not clamped"),
    )
    for key, name, unit, meaning in known:
        entry = mapping(paired, key)
        value = number(entry.get("value"))
        if value is None:
            continue
        bounds = interval(entry, number(entry.get("low")), number(entry.get("high")))
        yield [name, meaning, f"{figures(value)}{unit}", bounds]
    if (mean := number(paired.get("mean_psnr"))) is not None:
        yield ["mean PSNR", "of the pictures' own; one identical pair makes it infinite", f"{figures(mean)} dB", None]


def _distribution_rows(record: dict[str, Any]) -> Iterator[list[Any]]:
    found = mapping(record, "distribution")
    if not found:
        return
    floor = mapping(found, "floor")
    yield [found.get("name"), "Fréchet distance to the training images", figures(number(found.get("value"))), None]
    original = number(mapping(record, "float_distribution").get("value"))
    if original is not None:
        yield ["of the float model", "from the same noise", figures(original), None]
    spread = figures(number(floor.get("std")))
    meaning = f"{floor.get('samples')} real images against all of them, {floor.get('draws')} draws"
    yield ["its floor", meaning, figures(number(floor.get("mean"))), f"± {spread}" if spread else None]
    yield ["of the test split", "unseen real images", figures(number(found.get("test_distance"))), None]


def _public_rows(record: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield what weights gave that do not ship: FID, LPIPS, CLIP score."""
    found = mapping(record, "public")
    fid = mapping(found, "fid")
    counts = f"{fid.get('samples')} samples, {fid.get('real')} real pictures"
    for key, name, meaning in (
        ("to_real", "FID", f"to real pictures in InceptionV3's features: {counts}"),
        ("float_to_real", "of the float model", "from the same noise"),
        ("floor", "its floor", f"{fid.get('samples')} real pictures against all of them"),
        ("to_float", "FID to the float model", "to the float model's pictures in InceptionV3's features"),
    ):
        if (value := number(fid.get(key))) is not None:
            yield [name, meaning, figures(value), None]
    for key, name, meaning in (
        ("lpips", "LPIPS", "to the float model's pictures in VGG16's features; lower is nearer"),
        ("clip", "CLIP score", "100 times the cosine of picture and prompt"),
        ("float_clip", "of the float model", "from the same noise"),
    ):
        entry = mapping(found, key)
        if (value := number(entry.get("value"))) is not None:
            bounds = interval(entry, number(entry.get("low")), number(entry.get("high")))
            yield [name, meaning, figures(value), bounds]


# Cost.


def cost(pieces: Pieces, model: Model) -> Markup:
    """Return the tables of size, latency and memory."""
    lead = "Bytes are counted on disk. Times were taken in one run, the contenders taking turns."
    content: list[Any] = [tag("h3", "Size of the denoiser"), _size_table(model), *_pipeline_table(model)]
    content.append(tag("h3", "Latency and memory of a denoiser call"))
    rows = bench_rows(pieces)
    if not rows:
        return section("Size and speed", lead, *content, absent("bench", "No latency and no memory"))
    columns = [Column("engine"), Column("median", True), Column("10 to 90 %", True)]
    columns += [Column("× bf16", True), Column("× fp32", True), Column("peak memory", True), Column("on disk", True)]
    body = []
    for row in rows:
        memory = mapping(row, "memory")
        peak = number(memory.get("device")) or number(memory.get("peak"))
        low, high = figures(number(row.get("p10"))), figures(number(row.get("p90")))
        name = BASELINES.get(str(row.get("name")), row.get("name"))
        line = [name, f"{figures(number(row.get('median')))} ms", f"{low} to {high}" if low and high else None]
        line += [_speedup(row, baseline) for baseline in BASELINES]
        body.append([*line, megabytes(peak), megabytes(number(row.get("disk_bytes")))])
    how, machine = mapping(pieces.bench, "protocol"), mapping(pieces.bench, "machine")
    device = machine.get("cuda") or f"{machine.get('processor')}, {machine.get('threads')} threads"
    device += f", quantized in {how.get('dtype', 'float32')}"
    note = f"Batch {how.get('batch')}, {how.get('rounds')} rounds on {device}, torch {machine.get('torch')}. "
    note += "Peak memory is above that of a process that has only imported the libraries."
    content += [*_notes(pieces.bench), table(columns, body), tag("p", note, class_="note")]
    return section("Size and speed", lead, *content)


def bench_rows(pieces: Pieces) -> list[dict[str, Any]]:
    """Return the rows of the bench, baselines included."""
    rows = pieces.bench.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _speedup(row: dict[str, Any], baseline: str) -> Markup | None:
    found = mapping(row, "speedup", baseline)
    value, low, high = (number(found.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return None
    bounds = interval({}, low, high)
    return Markup(f"{figures(value)}" + (f"<br>{bounds}" if bounds else ""))


def _size_table(model: Model) -> Markup:
    sizes = model.sizes
    if sizes is None:
        return tag("p", "The folder holds no denoiser, only records.", class_="absent")
    fp32, bf16 = 4 * sizes.elements, 2 * sizes.elements
    rows = [
        ["fp32", megabytes(fp32), None, "before"],
        ["bf16", megabytes(bf16), f"{fp32 / bf16:.2f} ×", "before"],
        [model.bits or "quantized", megabytes(sizes.total), f"{fp32 / max(sizes.total, 1):.2f} ×", "all of it"],
        ["codes", megabytes(sizes.codes), None, "packed weights"],
        ["scales", megabytes(sizes.scales), None, "scales and zero points"],
        ["float", megabytes(sizes.floats), None, "norms, biases, kept layers"],
    ]
    return table(
        [Column("tensors"), Column("bytes", True), Column("smaller", True), Column("what")], rows, name="sizes"
    )


def _pipeline_table(model: Model) -> list[Markup]:
    """Return a heading and a table of the pipeline's networks; nothing where the denoiser is the only one."""
    if len(model.parts) < 2:
        return []
    rows = [
        [tag("code", part.name), part.kind, part.bits, megabytes(part.sizes.total), megabytes(4 * part.sizes.elements)]
        for part in model.parts
    ]
    whole = sum(part.sizes.total for part in model.parts), sum(4 * part.sizes.elements for part in model.parts)
    rows.append(["all", None, None, *map(megabytes, whole)])
    columns = [Column("component"), Column("class"), Column("format"), Column("on disk", True), Column("in fp32", True)]
    return [tag("h3", "The whole pipeline"), table(columns, rows, name="sizes")]
