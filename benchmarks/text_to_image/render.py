"""Write the study's page and its picture of the pairs that moved most. Nothing is typed in by hand."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import bench_table, interval, refreshed, table
from benchmarks.records import rows_of
from benchmarks.text_to_image.findings import (
    TARGETS,
    TELLING,
    Rows,
    findings,
    lost,
    networks,
    of,
    pair_of,
    top1,
    verdict,
)
from benchmarks.text_to_image.pictures import SHOWN
from benchmarks.text_to_image.plan import BITS, FLOAT, METHODS, USED
from benchmarks.text_to_image.readme import BLOCK, block
from benchmarks.text_to_image.settings import SECTIONS
from benchmarks.text_to_image.uses import PLAIN, USES
from halftone.foundation.files import write_atomically

PAGE = "text-to-image.md"
_COMMAND = "python -m benchmarks.text_to_image"


def read(folder: Path) -> dict[str, Rows]:
    """Return the rows by section and name."""
    return rows_of(folder, SECTIONS)


def render(results: Path, docs: Path, readme: Path | None = None) -> list[str]:
    """Write the page, and the README's table, and return what to tell."""
    sections = read(results)
    if not sections:
        return [f"no rows in {results}: nothing to render"]
    write_atomically(docs / PAGE, page(sections, [*_adapted(sections, results, docs), *_moved(results, docs)]))
    table_of = block(sections)
    told = [refreshed(readme, BLOCK, table_of)] if readme and table_of else []
    return [f"wrote {PAGE}", *told, *(f"no rows yet: {section}" for section in SECTIONS if section not in sections)]


def page(sections: dict[str, Rows], pictures: list[str]) -> str:
    """Return the page's Markdown; ``pictures`` are the sections with pictures."""
    first = next(iter(next(iter(sections.values())).values()))
    lines = [
        "# Text to image on a small Stable Diffusion",
        "",
        f"Made by `{_COMMAND} render` from the rows in `benchmarks/text_to_image/results/`; do not edit.",
        "",
        f"Model `{first['protocol']['model']['name']}`, weights {first['protocol']['model']['sha256'][:12]}. PSNR, SSIM and latent "
        "MSE are distances to the float model's pictures from the same noise, in the same use, with 95 % bootstrap intervals over "
        "pictures. *Top 1* is how often the nearest real picture is one of the concept that the prompt names, in the features of "
        f"{' and of '.join(networks(sections)) or 'no network'}; ± is the standard deviation over seeds of the noise. The "
        "kernel distance is that "
        "of the first of these features to one real picture of each concept; its floor is that of one half of the real pictures "
        "to the other.",
        "",
        *_conditions(sections),
    ]
    lines += findings(sections)
    writers = {"quality": _quality, "uses": _uses, "choices": _choices, "latency": _latency}
    for name, write in writers.items():
        if name in sections:
            lines += write(sections[name], sections.get("quality", {}))
    return "\n".join([*lines, *pictures]).rstrip() + "\n"


def _conditions(sections: dict[str, Rows]) -> list[str]:
    """Return under what conditions the rows were measured; more than one of a kind is said, not hidden."""
    rows = [row for section in sections.values() for row in section.values()]
    machines = sorted({_machine(row) for row in rows})
    versions = sorted({f"torch {row['machine']['torch']}, diffusers {row['machine']['diffusers']}" for row in rows})
    engines = sorted({name for row in rows for name in row["metrics"].get("engine", [])})
    budgets = sorted({row["recipe"]["budget"] for row in rows if row["recipe"]})
    counts = sorted(
        {
            f"{row['protocol']['prompts']} prompts x {len(row['protocol']['seeds'])} seeds"
            for row in rows
            if "seeds" in row["protocol"]
        }
    )
    commits = sorted(
        {f"`{(r['commit']['sha'] or 'unknown')[:10]}`{' (changed)' if r['commit']['dirty'] else ''}" for r in rows}
    )
    return [
        f"{'; '.join(machines)}; {'; '.join(versions)}; kernels {', '.join(engines) or 'none'}; budget {', '.join(budgets)}; "
        f"{', '.join(counts)}; commits {', '.join(commits)}.",
        "",
    ]


def _machine(row: dict[str, Any]) -> str:
    cpu = f"{row['machine']['processor']}, {row['machine']['threads']} threads"
    return cpu if row["protocol"].get("device", "cpu") == "cpu" else str(row["machine"]["cuda"])


def _aligned(row: dict[str, Any]) -> list[str]:
    """Return the cells about what the pictures show: top 1 with its spread over seeds, top 5, both of a second network, kernel
    distance with its floor."""
    seen, *others = row["metrics"]["seen"]
    values, kernel, floor = top1(row), seen["kernel"], seen["floor"]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    second = ", ".join(f"{100 * others[0]['alignment'][key]:.1f}" for key in ("top1", "top5")) if others else "-"
    return [
        f"{np.mean(values):.1f}{spread}",
        f"{100 * seen['alignment']['top5']:.1f}",
        second,
        f"{kernel['value']:.3f} ± {kernel['std']:.3f} (floor {floor['value']:.3f})",
    ]


def _distance(row: dict[str, Any]) -> list[str]:
    """Return the cells about the distance to the float model's pictures."""
    found = row["metrics"].get("paired")
    if not found:
        return ["-", "-", "-"]
    return [interval(found["psnr"], 1), interval(found["ssim"], 3), interval(found["latent_mse"], 1, 1e3)]


def _quality(rows: Rows, _: Rows) -> list[str]:
    head = [
        *("model", "PSNR, dB", "SSIM", "latent MSE, ·10⁻³", "top 1, %", "top 5, %", "top 1, top 5 (second network), %"),
        *("kernel distance", "U-Net, MB"),
    ]
    body = []
    for method, bits in [(FLOAT, FLOAT), *((method, bits) for bits in BITS for method in METHODS)]:
        row = of(rows, method=method, bits=bits)
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
    head = ["use", "float top 1, top 5, %"]
    for bits in USED:
        head += [
            f"{bits.upper()} PSNR, dB",
            "SSIM",
            "top 1, top 5, %",
            "points lost",
            "verdict",
            "points lost, second network",
        ]
    body: list[list[str]] = []
    for use, how in USES.items():
        reference = of(quality if use == PLAIN else rows, use=how.like or use, method=FLOAT)
        cells = [use, _both(reference) if reference else "-"]
        for bits in USED:
            pair = pair_of(use, bits, rows, quality)
            if pair is None:
                cells += ["-"] * 6
                continue
            row, reference = pair
            points = lost(row, reference)
            cells += [*_distance(row)[:2], _both(row), interval(asdict(points), 1), verdict(points, reference, bits)]
            several = min(len(each["metrics"]["seen"]) for each in pair) > 1
            cells.append(interval(asdict(lost(row, reference, 1)), 1) if several else "-")
        if any(cell != "-" for cell in cells[1:]):
            body.append(cells)
    wanted = ", ".join(f"{points:g} at {bits.upper()}" for bits, points in TARGETS.items())
    note = (
        f"Target: at most so many points lost: {wanted}. *Surely* where the whole 95 % interval over prompts says so; *none* where "
        f"the float model itself is right in less than {TELLING} % and nothing can be lost. Of *inpainting*, half of each picture "
        "is the float model's own of the same prompt, and the networks look at all of it: there, distances tell more. *Both "
        "quantized*: the U-Net was calibrated without a ControlNet, the ControlNet beside the float U-Net; neither saw the "
        "other's errors."
    )
    return ["## Uses", "", *table(head, body), note, "", *_obeyed(rows)]


def _both(row: dict[str, Any]) -> str:
    return f"{np.mean(top1(row)):.1f}, {100 * row['metrics']['seen'][0]['alignment']['top5']:.1f}"


def _obeyed(rows: Rows) -> list[str]:
    """Return how well adapters are followed: the style of a LoRA, the mask of a ControlNet."""
    titles = {"style_share": "pixels in the style, %", "overlap": "overlap with the mask, %"}
    body = []
    for use in USES:
        for row in (each for each in rows.values() if each["row"]["use"] == use and each["metrics"].get("obeyed")):
            said, found = row["row"], row["metrics"]["obeyed"]
            name = "float model" if said["method"] == FLOAT else f"{said['method']}, {said['bits'].upper()}"
            body.append([f"{use}: {name}", *(f"{100 * found[key]:.1f}" if key in found else "-" for key in titles)])
    return (
        ["How well what is put on the model is followed:", "", *table(["use", *titles.values()], body)] if body else []
    )


def _choices(rows: Rows, _: Rows) -> list[str]:
    """What a recipe may do otherwise, beside the same recipe without it."""
    head = ["choice", "model", "PSNR without, dB", "with, dB", "top 1 without, %", "with, %", "remarks"]
    body = []
    for row in (each for each in rows.values() if each["row"]["choice"]):
        said = row["row"]
        without = of(rows, method=said["method"], bits=said["bits"], choice="")
        values = [cells(each)[0] if each else "-" for cells in (_distance, _aligned) for each in (without, row)]
        body.append([said["choice"], f"{said['method']}, {said['bits'].upper()}", *values, _kept(row)])
    return ["## Choices", "", *table(head, body)]


def _kept(row: dict[str, Any]) -> str:
    """Return how many leading tokens were kept, where the row looked for them."""
    sinks = row["metrics"]["quantize"].get("sinks")
    return (
        "" if not sinks else f"{', '.join(map(str, sorted(set(sinks.values()))))} tokens kept, of {len(sinks)} layers"
    )


def _latency(rows: Rows, _: Rows) -> list[str]:
    lines = ["## Speed and memory", "", "Of one U-Net call; a guided picture is two rows of it.", ""]
    for row in rows.values():
        for batch, found in sorted(row["metrics"]["bench"].items(), key=lambda each: int(each[0])):
            lines += bench_table(found, batch)
    return lines


def _adapted(sections: dict[str, Rows], results: Path, docs: Path) -> list[str]:
    """Copy the pictures of adapters at work beside the page; return the section that shows them."""
    lines = []
    for use, bits in itertools.product(SHOWN, USED):
        row = of(sections.get("uses", {}), use=use, method="Q-Diffusion", bits=bits)
        file = results / "uses" / f"{row['row']['name']}.png" if row else None
        if file is not None and file.exists():
            name = f"text-to-image-{file.name}"
            write_atomically(docs / name, file.read_bytes())
            lines += [f"{use}, {bits.upper()}:", "", f"![{use}, {bits.upper()}]({name})", ""]
    said = (
        "A prompt's pictures from the same noise: the float model's, with the adapter, with it on the quantized model."
    )
    return ["## Adapters on the quantized model", "", said, "", *lines] if lines else []


def _moved(results: Path, docs: Path) -> list[str]:
    """Copy the pictures of the pairs that moved most beside the page; return the section that shows them."""
    lines = []
    for bits in BITS:
        file = results / "quality" / f"q-diffusion-{bits}.png"
        if file.exists():
            name = f"text-to-image-moved-{bits}.png"
            write_atomically(docs / name, file.read_bytes())
            lines += [f"![{bits.upper()}]({name})", ""]
    said = (
        "Same noise, same prompt: the float model's picture, then Q-Diffusion's; the pairs that are farthest apart in what the "
        "first network sees. Below the second: at which place the right concept was among the nearest, first in the float model's "
        "picture, then in this one. *1 to 1* is as good a picture, but another one."
    )
    return ["## The pairs that moved most", "", said, "", *lines] if lines else []
