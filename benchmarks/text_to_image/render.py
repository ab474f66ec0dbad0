"""Write the study's page and its picture of the pairs that moved most. Nothing is typed in by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import bench_table, interval, table
from benchmarks.records import rows_of
from benchmarks.text_to_image.plan import BITS, FLOAT, METHODS, USED
from benchmarks.text_to_image.settings import SECTIONS
from benchmarks.text_to_image.uses import PLAIN, USES
from halftone.foundation.files import write_atomically

PAGE = "text-to-image.md"
_COMMAND = "python -m benchmarks.text_to_image"
# Within how many points of the float model's alignment a model is to stay.
_TARGETS = {"w4a8": 2.0, "w8a8": 1.0}
Rows = dict[str, dict[str, Any]]


def read(folder: Path) -> dict[str, Rows]:
    """Return the rows by section and name."""
    return rows_of(folder, SECTIONS)


def render(results: Path, docs: Path) -> list[str]:
    """Write the page and return what to tell."""
    sections = read(results)
    if not sections:
        return [f"no rows in {results}: nothing to render"]
    write_atomically(docs / PAGE, page(sections, _moved(results, docs)))
    return [f"wrote {PAGE}", *(f"no rows yet: {section}" for section in SECTIONS if section not in sections)]


def page(sections: dict[str, Rows], moved: list[str]) -> str:
    """Return the page's Markdown; ``moved`` is the section with the pictures."""
    first = next(iter(next(iter(sections.values())).values()))
    lines = [
        "# Text to image on a small Stable Diffusion",
        "",
        f"Made by `{_COMMAND} render` from the rows in `benchmarks/text_to_image/results/`; do not edit.",
        "",
        f"Model `{first['protocol']['model']['name']}`, weights {first['protocol']['model']['sha256'][:12]}; "
        f"{first['machine']['processor']}, {first['machine']['threads']} threads, torch {first['machine']['torch']}, "
        f"diffusers {first['machine']['diffusers']}. PSNR, SSIM and latent MSE are distances to the float model's pictures from "
        "the same noise, in the same use, with 95 % bootstrap intervals. *Top 1* is how often the nearest real picture is one of "
        "the concept that the prompt names.",
        "",
    ]
    writers = {"quality": _quality, "uses": _uses, "sinks": _sinks, "latency": _latency}
    for name, write in writers.items():
        if name in sections:
            lines += write(sections[name], sections.get("quality", {}))
    return "\n".join([*lines, *moved]).rstrip() + "\n"


def _of(rows: Rows, **wanted: str) -> dict[str, Any] | None:
    found = (row for row in rows.values() if all(row["row"][key] == value for key, value in wanted.items()))
    return next(found, None)


def top1(row: dict[str, Any]) -> list[float]:
    """Return the alignment of each seed, in percent, in the model's own features."""
    return [100 * value for value in row["metrics"]["seen"][0]["alignment"]["top1_by_seed"]]


def _aligned(row: dict[str, Any]) -> list[str]:
    """Return the cells about what the pictures show: top 1 with its spread over seeds, top 5, kernel distance."""
    seen = row["metrics"]["seen"][0]
    values, kernel = top1(row), seen["kernel"]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return [f"{np.mean(values):.1f}{spread}", f"{100 * seen['alignment']['top5']:.1f}", f"{kernel['value']:.3f}"]


def _distance(row: dict[str, Any]) -> list[str]:
    """Return the cells about the distance to the float model's pictures."""
    found = row["metrics"].get("paired")
    return [interval(found["psnr"], 1), interval(found["ssim"], 3)] if found else ["-", "-"]


def _quality(rows: Rows, _: Rows) -> list[str]:
    head = ["model", "PSNR, dB", "SSIM", "top 1, %", "top 5, %", "kernel distance", "U-Net, MB"]
    body = []
    for method, bits in [(FLOAT, FLOAT), *((method, bits) for bits in BITS for method in METHODS)]:
        row = _of(rows, method=method, bits=bits)
        if row:
            size = row["metrics"].get("sizes")
            name = "float model" if method == FLOAT else f"{method}, {bits.upper()}"
            body.append([name, *_distance(row), *_aligned(row), f"{size['file'] / 1e6:.1f}" if size else "-"])
    some = next(iter(rows.values()))["protocol"]
    note = (
        f"{some['prompts']} prompts, {len(some['seeds'])} seeds, {some['steps']} steps, guidance {some['guidance']:g}."
    )
    return ["## Quality", "", *table(head, body), note, ""]


def _uses(rows: Rows, quality: Rows) -> list[str]:
    """A use beside the float model in the same use; what a model loses there is beside it, in points."""
    head = ["use", "float top 1, %"]
    for bits in USED:
        head += [f"{bits.upper()} PSNR, dB", "top 1, %", "points lost"]
    body, missed = [], []
    for use, how in USES.items():
        own = quality if use == PLAIN else rows
        base = use.replace(", recalibrated", "") if how.recalibrated else use
        reference = _of(own, use=base, method=FLOAT)
        cells = [use, f"{np.mean(top1(reference)):.1f}" if reference else "-"]
        for bits in USED:
            row = _of(own, use=use, method="Q-Diffusion", bits=bits)
            if row is None or reference is None:
                cells += ["-", "-", "-"]
                continue
            lost = float(np.mean(top1(reference)) - np.mean(top1(row)))
            cells += [_distance(row)[0], f"{np.mean(top1(row)):.1f}", f"{lost:+.1f}"]
            if lost > _TARGETS[bits]:
                missed.append(f"{use} at {bits.upper()} ({lost:+.1f})")
        if any(cell != "-" for cell in cells[1:]):
            body.append(cells)
    wanted = ", ".join(f"{points:g} at {bits.upper()}" for bits, points in _TARGETS.items())
    verdict = f"Beyond the target (points lost: at most {wanted}): {'; '.join(missed) or 'none'}."
    return ["## Uses", "", *table(head, body), verdict, ""]


def _sinks(rows: Rows, quality: Rows) -> list[str]:
    head = ["model", "kept tokens", "PSNR without, dB", "with, dB", "top 1 without, %", "with, %"]
    body = []
    for row in rows.values():
        said = row["row"]
        without = _of(quality, method=said["method"], bits=said["bits"])
        kept = sorted(set((row["metrics"]["quantize"].get("sinks") or {}).values()))
        values = (
            [_distance(without)[0], _distance(row)[0], _aligned(without)[0], _aligned(row)[0]] if without else ["-"] * 4
        )
        body.append([f"{said['method']}, {said['bits'].upper()}", ", ".join(map(str, kept)) or "-", *values])
    return ["## Token sinks", "", *table(head, body)]


def _latency(rows: Rows, _: Rows) -> list[str]:
    lines = ["## Speed and memory", "", "Of one U-Net call; a guided picture is two rows of it.", ""]
    for row in rows.values():
        for batch, found in row["metrics"]["bench"].items():
            lines += bench_table(found, batch)
    return lines


def _moved(results: Path, docs: Path) -> list[str]:
    """Copy the pictures of the pairs that moved most beside the page; return the section that shows them."""
    lines = []
    for bits in BITS:
        file = results / "quality" / f"q-diffusion-{bits}.png"
        if file.exists():
            name = f"text-to-image-moved-{bits}.png"
            write_atomically(docs / name, file.read_bytes())
            lines += [f"![{bits.upper()}]({name})", ""]
    said = "Same noise, same prompt: the float model's picture, then Q-Diffusion's. Often as good a picture, but another one."
    return ["## The pairs that moved most", "", said, "", *lines] if lines else []
