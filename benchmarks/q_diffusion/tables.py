"""Markdown tables of the study. Every number comes from a row's file."""

from typing import Any

import numpy as np

from benchmarks.markdown import bench_table, interval, table
from benchmarks.q_diffusion import reasons
from benchmarks.q_diffusion.plan import (
    ACTIVATIONS,
    CALIBRATIONS,
    HEADLINE,
    METHODS,
    RECONSTRUCTIONS,
    SPLITS,
    WHOLE,
    reads_calibration,
)
from benchmarks.q_diffusion.results import Result, Section, comparable, pick, removed
from halftone.evaluate.paired import decibels

NAMES = {"rtn": "linear (nearest rounding)", "gptq": "GPTQ", "q-diffusion": "Q-Diffusion", "float": "float model"}
RESUMED = ["\\* went on from an interrupted run: the time of its last part.", ""]
_LATENCY_BATCH = "16"


def distance(row: Result) -> str:
    """Return a row's Fréchet distance."""
    return f"{row.distribution['value']:.2f}" if row.distribution else "-"


def over_float(row: Result, reference: Result | None) -> str:
    """Return by how much a distance exceeds the float model's, where both have the same number of samples."""
    if reference is None or row.distribution is None or reference.distribution is None:
        return "-"
    if row.protocol["samples"] != reference.protocol["samples"] or row is reference:
        return "-"
    return f"{row.distribution['value'] / reference.distribution['value'] - 1:+.1%}"


def typical(row: Result) -> str:
    """Return the PSNR of the median image: the pooled one is decided by the few whose sampling took another way."""
    return f"{decibels(float(np.median(row.errors))):.1f}" if row.paired else "-"


def floor_sentence(section: Section) -> list[str]:
    """Return what the distances of a section have to be read against."""
    counted = [row for row in section.values() if row.distribution]
    row = max(counted, key=lambda each: each.protocol["samples"], default=None)  # of the tables, not of further seeds
    if row is None or row.distribution is None:
        return []
    found, floor = row.distribution, row.distribution["floor"]
    return [
        f"Floor of {found['name']} at {row.protocol['samples']} samples: {floor['mean']:.2f} ± {floor['std']:.2f} "
        f"({floor['samples']} real training images against all of them, {floor['draws']} draws); the whole test split has "
        f"{found['test_distance']:.2f}. No model can be expected to get below the floor, and differences between rows that are "
        "small beside its deviation say nothing: the paired columns decide.",
        "",
    ]


def share(value: float) -> str:
    """Return a share in percent."""
    return f"{value:.1%}"


def latencies(section: Section, batch: str = _LATENCY_BATCH) -> dict[str, dict[str, Any]]:
    """Return the timed rows of a batch by contender."""
    row = section.get("latency")
    found = (row.metrics["bench"].get(batch) or {}) if row else {}
    return {each["name"]: each for each in found.get("rows", [])}


def minutes(row: Result) -> str:
    """Return how long quantizing took; a star where the run was resumed, as its seconds are then those of the last part."""
    facts = row.metrics.get("quantize")
    return f"{facts['seconds'] / 60:.1f}" + ("*" if facts["resumed"] else "") if facts else "-"


def _timed(row: Result, times: dict[str, dict[str, Any]]) -> str:
    """Return a row's latency: layers of equal formats run the same kernels, whichever method found the numbers."""
    found = timed_as(row, times)
    return f"{found['median']:.1f}" if found else "-"


def timed_as(row: Result, times: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the timed row of a model of this row's formats; None where there is none."""
    if row.labels["method"] == "float":
        return times.get("float32")
    return next((each for name, each in times.items() if name.endswith(f"-{row.labels.get('bits')}")), None)


def headline(section: Section) -> list[str]:
    """Return the headline table."""
    reference, times = section.get("float"), latencies(section)
    head = ["model", "bits", "budget", "FD", "over float", "PSNR, dB", "median PSNR, dB", "SSIM", "latent MSE, ·10⁻³"]
    head += ["linear's error removed", "denoiser, MB", f"ms/call, batch {_LATENCY_BATCH}", "quantized in, min"]
    body = []
    for row in main_rows(section):
        linear, pairs = pick(section, method="rtn", bits=row.labels["bits"], seed="main"), row.paired or {}
        facts = row.metrics.get("quantize")
        body.append(
            [
                NAMES[row.labels["method"]],
                row.labels["bits"].upper() if facts else "32",
                (row.data["budget"] if row.labels["method"] == "q-diffusion" else "-") if facts else "-",
                distance(row),
                over_float(row, reference),
                interval(pairs.get("psnr")),
                typical(row),
                interval(pairs.get("ssim"), 3),
                interval(pairs.get("latent_mse"), 2, 1e3),
                share(removed(row, linear).value) if linear and linear is not row and comparable(row, linear) else "-",
                megabytes(section, row, 2),
                _timed(row, times),
                minutes(row),
            ]
        )
    lines = table(head, body)
    if any((row.metrics.get("quantize") or {}).get("resumed") for row in main_rows(section)):
        lines += RESUMED
    return lines


def megabytes(section: Section, row: Result, digits: int) -> str:
    """Return the bytes of a row's denoiser; of the float model those in float32 too, as its files may hold fewer.

    The float32 bytes were counted by the quantized rows: their denoiser with all weights in float32.
    """
    stored = row.metrics["disk_bytes"]
    text = f"{stored / 1e6:.{digits}f}"
    whole = next((each.metrics["sizes"]["unquantized"] for each in section.values() if "sizes" in each.metrics), None)
    if row.labels["method"] != "float" or whole is None:
        return text
    return f"{whole / 1e6:.{digits}f} (fp32), {text} as stored ({round(32 * stored / whole)}-bit)"


def main_rows(section: Section) -> list[Result]:
    """Return the float row and the main seed's rows, in the order of the tables."""
    found = [section.get("float")]
    found += [
        pick(section, method=m, bits=b, seed="main") for b in sorted(HEADLINE, reverse=True) for m in reversed(METHODS)
    ]
    return [row for row in found if row is not None]


def latency(section: Section) -> list[str]:
    """Return the latency tables, one for each batch, with their baselines."""
    row = section.get("latency")
    lines: list[str] = []
    for batch, found in (row.metrics["bench"] if row else {}).items():
        lines += bench_table(found, batch)
    if row is not None and row.data["load_average"] is not None:
        threads = row.data["machine"]["threads"]
        lines += [
            f"Load average of the machine at the end of this run: {row.data['load_average']} ({threads} threads).",
            "",
        ]
    return lines


def quality(section: Section, columns: dict[str, str], whole: Section | None = None) -> list[str]:
    """Return a plain table of paired and distribution distances.

    Args:
        columns: heads by label.
        whole: where the float rows are, if not among those shown.
    """
    rows = (section if whole is None else whole).values()
    floats = {row.protocol["sampler"]: row for row in rows if row.protocol["kind"] == "float"}
    body = []
    for row in _sorted(section, list(columns)):
        pairs = row.paired or {}
        cells = [NAMES.get(label := row.labels.get(key, "-"), label) for key in columns]
        cells += [
            row.data["budget"] or "-",
            interval(pairs.get("psnr")),
            typical(row),
            interval(pairs.get("latent_mse"), 2, 1e3),
        ]
        body.append([*cells, distance(row), over_float(row, floats.get(row.protocol["sampler"]))])
    return table(
        [*columns.values(), "budget", "PSNR, dB", "median PSNR, dB", "latent MSE, ·10⁻³", "FD", "over float"], body
    )


def haze(section: Section) -> list[str]:
    """Return the distances with and without haze, and what the float model's images would have with as much of it."""
    reference = section.get("float")
    body = []
    for row in _sorted(section, ["bits", "method"]):
        found, before = (each.metrics.get("hazeless") if each else None for each in (row, reference))
        over = f"{found / before - 1:+.1%}" if found and before and row is not reference else "-"
        cells = [NAMES[row.labels["method"]], row.labels.get("bits", "-"), distance(row), over_float(row, reference)]
        body.append([*cells, f"{found:.2f}" if found else "-", over, *_hazy(row)])
    head = ["model", "bits", "FD", "over float", "FD without haze", "over float", "background, levels brighter"]
    return table([*head, "FD of float, as bright"], body)


def _hazy(row: Result) -> list[str]:
    found = row.metrics.get("haze")
    if not found:
        return ["-", "-"]
    made = found["float_distance"]
    return [f"{found['brighter']:+.2f}", "-" if made is None else f"{made:.2f}"]


def _sorted(section: Section, keys: list[str]) -> list[Result]:
    order = [*CALIBRATIONS, *SPLITS, *RECONSTRUCTIONS]

    def rank(row: Result) -> tuple:
        values = [row.labels.get(key, "") for key in keys]
        return (
            row.paired is not None,
            [f"{order.index(value):02d}" if value in order else f"{value:>12}" for value in values],
            row.name,
        )

    return sorted(section.values(), key=rank)


def ablation(section: Section) -> list[str]:
    """Return the ablation: one grid for each bit-width, PSNR in the cells, and the other ingredients below."""
    lines: list[str] = []
    for bits in ("w4a32", "w4a8"):
        body = []
        for reconstruction in RECONSTRUCTIONS:
            for split in SPLITS:
                cells = [_cell(section, bits, calibration, split, reconstruction) for calibration in CALIBRATIONS]
                if any(cell != "-" for cell in cells):
                    body.append([f"{reconstruction}, split {split}", *cells])
        if body:
            words = "without the step over the whole network, PSNR in dB by calibration"
            lines += [f"{bits.upper()}, {words}:", "", *table(["", *CALIBRATIONS], body)]
    others = {name: row for name, row in section.items() if "without" in row.labels}
    whole = pick(section, without=WHOLE)
    if others:
        lines += [
            "The whole method at W4A8, and without one part each:",
            "",
            *quality(others, {"without": "without"}, section),
        ]
    ranges = {name: row for name, row in section.items() if "activations" in row.labels}
    if ranges:
        if whole:
            ranges[whole.name] = Result({**whole.data, "labels": {"activations": ACTIVATIONS[0]}})
        lines += [
            "W4A8 by how the activations' ranges are found:",
            "",
            *quality(ranges, {"activations": "ranges"}, section),
        ]
    return lines


def _cell(section: Section, bits: str, calibration: str, split: str, reconstruction: str) -> str:
    if not reads_calibration(bits, split, reconstruction):
        calibration = CALIBRATIONS[0]
    row = pick(section, bits=bits, calibration=calibration, split=split, reconstruction=reconstruction)
    return interval(row.paired["psnr"]) if row and row.paired else "-"


def samplers(section: Section) -> list[str]:
    """Return the table of samplers."""
    listed = {}
    for name, row in section.items():
        steps = row.protocol["steps"]
        sampled = {"ddim": "DDIM", "dpm": "DPM-Solver++"}[row.protocol["sampler"]]
        calibrated = {"ddim": "DDIM", "dpm": "DPM-Solver++"}.get(row.protocol.get("calibrated_for", ""), "-")
        labels = {
            "method": "q-diffusion" if row.data["recipe"] else "float",
            **row.labels,
            "bits": row.labels["bits"] + (", time layers float" if "time" in row.labels else ""),
            "calibrated": calibrated,
            "sampled": f"{sampled}, {steps} steps",
        }
        listed[name] = Result({**row.data, "labels": labels})
    return quality(
        listed, {"method": "model", "bits": "bits", "calibrated": "calibrated for", "sampled": "sampled with"}
    )


def shortcuts(section: Section) -> list[str]:
    """Return ranges and bimodality of the layers fed by a concatenation."""
    row = section.get("float")
    body = []
    for path, facts in (row.metrics["ranges"]["concatenations"] if row else {}).items():
        spans = [f"{min(part['minimum']):.1f} to {max(part['maximum']):.1f}" for part in facts["parts"]]
        channels = " + ".join(str(each) for each in facts["channels"])
        times = reasons.own_scales(row, path, facts["channels"]) if row else None
        body.append(
            [f"`{path}`", channels, *spans[:2], f"{facts['bimodality']:.2f}", "-" if times is None else f"{times:.1f}"]
        )
    head = ["layer", "channels", "range of the deep part", "range of the skip", "bimodality, dB", "own scales, ×"]
    return table(head, body) if body else []


def timed_names(section: Section) -> list[str]:
    """Return the quantized models that the latency row timed, for a sentence."""
    return [f"`{name}`" for name in latencies(section) if name not in ("float32", "bfloat16")]
