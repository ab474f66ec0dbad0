"""The sections about what happened inside the model: blocks, ranges, layers; and where the numbers come from."""

import math
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import yaml

from halftone.report import plots
from halftone.report.layers import Layer, Model, inspected_layers
from halftone.report.pieces import Pieces, mapping, number, numbers
from halftone.report.plots import Band
from halftone.report.sections import absent, figure, section
from halftone.report.tables import Cell, Column, Markup, escaped, figures, join, megabytes, table, tag

_WIDEST = 6  # layers whose ranges are drawn


def blocks(pieces: Pieces, model: Model) -> Markup:
    """Return the errors of each block before and after the steps that learn, and of each layer's weight."""
    lead = "Nearest rounding is where a step starts. A block that got no better kept it."
    content: list[Any] = []
    for step, facts in mapping(pieces.quantize, "steps").items():
        entries = {path: mapping(entry) for path, entry in mapping(facts, "layers").items()}
        for key, name in (("error_nearest", "nearest rounding"), ("error_before", "before")):
            before = {p: v for p, e in entries.items() if (v := number(e.get(key))) is not None}
            after = {p: v for p, e in entries.items() if (v := number(e.get("error"))) is not None}
            if not before.keys() & after.keys():
                continue
            method = mapping(pieces.quantize, "recipe", "steps", step).get("method", step)
            content += [tag("h3", "Step ", tag("code", step), f", {method}")]
            drawn = plots.block_errors(before, after, name, "reconstructed" if key == "error_nearest" else "after")
            content += [tag("figure", drawn, class_="wide"), tag("p", _gain(before, after), class_="note")]
        for note in facts.get("notes") or () if isinstance(facts, dict) else ():
            content.append(tag("p", tag("code", step), f": {note}", class_="note"))
    if not content:
        content.append(tag("p", "No step of this recipe learns from block to block.", class_="note"))
    errors = {layer.path: (layer.role, layer.error) for layer in model.layers if layer.error is not None}
    if errors:
        content += [tag("h3", "Weights, by role"), tag("figure", plots.layer_errors(errors), class_="wide")]
        largest = sorted(errors, key=lambda path: -errors[path][1])[:3]
        named = join([tag("code", path) for path in largest], ", ")
        text = " Reconstruction moves weights away from nearest rounding on purpose: this error may grow as the block's falls."
        content.append(tag("p", "A dot is a layer; the largest are ", named, ".", text, class_="note"))
    return section("Block by block", lead, *content)


def _gain(before: dict[str, float], after: dict[str, float]) -> str:
    ratios = sorted(after[p] / before[p] for p in before if p in after and before[p] > 0)
    if not ratios:
        return ""
    middle = ratios[len(ratios) // 2]
    return f"{len(ratios)} blocks. In the median block {100 * middle:.0f} % of the error is left."


def ranges(pieces: Pieces) -> Markup:
    """Return activation ranges over the calls of the widest layers, and those of the halves of each shortcut."""
    lead = "What layers are fed while the float model samples. Lines are extremes, the filled part holds 99.8 % of the values."
    content: list[Any] = []
    widest = _widest({path: _band(entry) for path, entry in mapping(pieces.ranges, "layers").items()})
    if widest:
        drawn = [
            figure(plots.bands([band], f"range of {path}"), tag("code", path), also) for path, band, also in widest
        ]
        content += [tag("h3", "The widest layers"), tag("div", *drawn, class_="multiples")]
    else:
        content.append(absent("ranges", "No ranges over time"))
    return section("Activation ranges", lead, *content, *_shortcuts(pieces))


def _widest(bands: dict[str, Band]) -> list[tuple[str, Band, str]]:
    """Return path, band, and a remark on the layers that read the same tensor (queries, keys and values do)."""
    readers: dict[tuple[Any, ...], list[str]] = {}
    for path, band in bands.items():
        readers.setdefault((*band.minimum, *band.maximum), []).append(path)
    first = sorted((paths for paths in readers.values()), key=lambda paths: -bands[paths[0]].width)[:_WIDEST]
    return [(paths[0], bands[paths[0]], f"and {len(paths) - 1} more" if len(paths) > 1 else "") for paths in first]


def _shortcuts(pieces: Pieces) -> Iterator[Markup]:
    decided: dict[str, dict[str, Any]] = {}
    for facts in mapping(pieces.quantize, "steps").values():
        decided |= {p: e for p, entry in mapping(facts, "layers").items() if "split" in (e := mapping(entry))}
    roles = {path: str(mapping(f).get("role")) for path, f in mapping(pieces.quantize, "layers").items()}
    seen = {
        path: mapping(entry)
        for path, entry in mapping(pieces.ranges, "concatenations").items()
        if path in decided or fnmatchcase(roles.get(path, ""), "*shortcut*")
    }
    paths = [*decided, *(path for path in seen if path not in decided)]
    if not paths:
        return
    yield tag("h3", "The two halves of each shortcut")
    yield table(
        [Column("layer"), Column("channels", True), Column("first part", True), Column("second part", True)]
        + [Column("bimodality", True), Column("scales")],
        [_shortcut_row(path, decided.get(path, {}), seen.get(path, {})) for path in paths],
    )
    drawn = []
    for path in paths:
        parts = [_band(part) for part in seen.get(path, {}).get("parts") or ()]
        if parts:
            # The score that decided, where there is one: that of the calibration.
            score = figures(number(decided.get(path, {}).get("score_db", seen[path].get("bimodality"))))
            state = "" if path not in decided else ", split" if decided[path].get("split") else ", not split"
            drawn.append(figure(plots.bands(parts, f"ranges of {path}"), tag("code", path), f"{score} dB{state}"))
    if drawn:
        yield tag("div", *drawn, class_="multiples")
    legend = [tag("i", class_="cyan"), " first part, ", tag("i", class_="magenta"), " second part. "]
    text = "Bimodality is the rounding noise, in dB, that separate scales take away from the layer's output."
    yield tag("p", *(legend if drawn else []), text, class_="note")


def _shortcut_row(path: str, decided: dict[str, Any], seen: dict[str, Any]) -> list[Any]:
    channels = decided.get("parts") or seen.get("channels") or []
    spans = [numbers(part) for part in decided.get("ranges") or ()]
    if not spans:
        bands = [_band(part) for part in seen.get("parts") or ()]
        spans = [[min(b.minimum, default=math.nan), max(b.maximum, default=math.nan)] for b in bands]
    shown = [f"{figures(s[0])} to {figures(s[1])}" if len(s) == 2 else None for s in [*spans, [], []][:2]]
    score = number(decided.get("score_db", seen.get("bimodality")))
    state = None if "split" not in decided else tag("b", "separate") if decided["split"] else "joint"
    return [
        path,
        " + ".join(str(c) for c in channels),
        *shown,
        f"{figures(score)} dB" if score is not None else None,
        state,
    ]


def _band(entry: Any) -> Band:
    return Band(*(numbers(mapping(entry).get(key)) for key in ("minimum", "low", "high", "maximum")))


# Layers, recipe, provenance.


def layers(pieces: Pieces, model: Model) -> Markup:
    """Return the table of all layers, folded, what stays float although one might think otherwise, and what refused to run them."""
    columns = [Column("layer"), Column("role"), Column("bits"), Column("kernel"), Column("bytes", True)]
    columns += [Column("difference", True), Column("weight error", True)]
    kept = sum(layer.kept for layer in model.layers)
    inferred = sum(layer.inferred for layer in model.layers)
    counts = f"{len(model.layers)} layers" + (f", {kept} kept float" if kept else "")
    counts += f", {inferred} roles inferred" if inferred else ""
    whole = table(columns, [_layer_row(layer) for layer in model.layers], sortable=True)
    content: list[Any] = [tag("details", tag("summary", counts), whole)]
    if model.left_float:
        content += [tag("h3", "Left float"), *(tag("p", f"{sentence}.") for sentence in model.left_float)]
    content += list(_kernels(pieces, model)) if pieces.inspection else [absent("inspection", "No kernels")]
    lead = (
        "Headings sort. A role with a question mark was inferred from structure. The difference is the kernel's greatest from "
        "the definition of the layer, relative to its largest output."
    )
    return section("Every layer", lead, *content)


def _layer_row(layer: Layer) -> list[Any]:
    role = layer.role + ("?" if layer.inferred else "")
    bits = layer.bits + (f", {len(layer.parts)} parts" if len(layer.parts) > 1 else "")
    size = Cell(megabytes(layer.bytes), None if layer.bytes is None else float(layer.bytes))
    measured = [Cell(figures(layer.difference, 2), layer.difference), Cell(figures(layer.error), layer.error)]
    return [layer.path, role, bits, layer.kernel, size, *measured]


def _kernels(pieces: Pieces, model: Model) -> Iterator[Markup]:
    """Yield how many layers each kernel runs, and why preferred ones were refused: what is simulated says so."""
    running = Counter(layer.kernel for layer in model.layers if layer.kernel)
    if running:
        yield tag("p", ", ".join(f"{count} layers on {kernel}" for kernel, count in running.most_common()) + ".")
    refused: Counter[tuple[str, str]] = Counter()
    for facts in inspected_layers(pieces.inspection).values():
        refused.update((kernel, str(reason)) for kernel, reason in mapping(facts, "refused").items())
    if refused:
        rows = [[kernel, reason, count] for (kernel, reason), count in refused.most_common()]
        yield tag("h3", "Refused by faster kernels")
        yield table([Column("kernel"), Column("reason"), Column("layers", True)], rows)
    operands = pieces.inspection.get("operands")
    if isinstance(operands, list):
        simulated = sum(mapping(each).get("arithmetic") == "simulated" for each in operands)
        if simulated:
            yield tag("p", f"{simulated} of {len(operands)} attention operands are simulated.", class_="note")
        if len(operands) > simulated:
            yield tag("p", f"{len(operands) - simulated} attention operands are multiplied as integers.")


def recipe(pieces: Pieces) -> Markup:
    """Return the resolved recipe."""
    text = yaml.safe_dump(mapping(pieces.quantize, "recipe"), sort_keys=False, allow_unicode=True, width=96)
    folded = tag("details", tag("summary", "Resolved, with every default"), tag("pre", text))
    return section("Recipe", "What was asked for. The same file gives the same codes.", folded)


def provenance(pieces: Pieces, version: str) -> Markup:
    """Return where the numbers on the page come from."""
    groups = {
        "Quantization": {"seed": pieces.quantize.get("seed"), "budget": pieces.quantize.get("budget")},
        "Calibration": mapping(pieces.quantize, "trajectory"),
        "Seconds by step": mapping(pieces.quantize, "seconds"),
        "Evaluation": mapping(pieces.evaluation, "protocol"),
        "Feature network": {"sha256": mapping(pieces.evaluation, "distribution").get("network_sha256")},
        "Bench": {**mapping(pieces.bench, "machine"), **mapping(pieces.bench, "protocol")},
        "Page": {"made by": f"Halftone {version}"},
    }
    lists = []
    for title, facts in groups.items():
        known = {key: value for key, value in facts.items() if value is not None and value != ""}
        if known:
            entries = [join([tag("dt", key), tag("dd", _flat(value))]) for key, value in known.items()]
            lists.append(tag("div", tag("h3", title), tag("dl", *entries)))
    return section("Provenance", "Numbers without their protocol are not numbers.", tag("div", *lists, class_="facts"))


def _flat(value: Any) -> Markup:
    if isinstance(value, dict):
        return escaped(", ".join(f"{key} {entry}" for key, entry in value.items() if entry is not None))
    return escaped(value)
