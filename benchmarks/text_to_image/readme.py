"""The README's table of the small Stable Diffusion: what its pictures are worth in low bits."""

import numpy as np

from benchmarks.markdown import interval, table
from benchmarks.text_to_image.findings import TARGETS, Rows, lost, networks, of, pair_of, top1
from benchmarks.text_to_image.plan import BITS, FLOAT, METHODS, USED
from benchmarks.text_to_image.uses import USES

BLOCK = "emoji"
_PAGE = "text-to-image.md"


def block(sections: dict[str, Rows]) -> str | None:
    """Return the table, None before the float model has been looked at."""
    rows = sections.get("quality", {})
    reference = of(rows, method=FLOAT)
    if reference is None:
        return None
    body = [["float model", "32", *_right(reference), "-", "-"]]
    for bits in BITS:
        for method in METHODS:
            row = of(rows, method=method, bits=bits)
            if row:
                metrics = row["metrics"]
                name = "linear (nearest rounding)" if method == "linear" else method
                cells = [name, bits.upper(), *_right(row), interval(metrics["paired"]["psnr"], 1)]
                body.append([*cells, f"{metrics['sizes']['file'] / 1e6:.1f}"])
    how = reference["protocol"]
    known, looked = reference["metrics"]["seen"][0]["alignment"]["concepts"], networks(sections)
    head = ["", "bits", "top 1, %", "top 5, %", "top 1 by the second network, %", "PSNR to float, dB", "U-Net, MB"]
    note = (
        f"`zoo:{how['model']['name']}`: {how['prompts']} prompts, {len(how['seeds'])} seeds, {how['steps']} steps, guidance "
        f"{how['guidance']:g}. *Top 1*: how often the nearest real picture, of {known} concepts, is one of what the prompt names, "
        f"in the features of {' and of '.join(looked)}. {_uses(sections, looked)}Everything else is in [the "
        f"study](docs/results/{_PAGE}), made by "
        "`python -m benchmarks.text_to_image run` and `render`."
    )
    return "\n".join([*table(head, body), note, ""])


def _right(row: dict) -> list[str]:
    several = len(row["metrics"]["seen"]) > 1
    top5 = 100 * row["metrics"]["seen"][0]["alignment"]["top5"]
    return [f"{np.mean(top1(row)):.1f}", f"{top5:.1f}", f"{np.mean(top1(row, 1)):.1f}" if several else "-"]


def _uses(sections: dict[str, Rows], looked: list[str]) -> str:
    """Return what Q-Diffusion changes in the worst of all uses that were measured, by bits and network."""
    rows, quality = sections.get("uses", {}), sections.get("quality", {})
    pairs = {bits: {use: pair_of(use, bits, rows, quality) for use in USES} for bits in USED}
    said, count = [], max(sum(pair is not None for pair in found.values()) for found in pairs.values())
    for bits, found in pairs.items():
        worst = []
        for number, name in enumerate(looked):
            points = {use: lost(*pair, number).value for use, pair in found.items() if pair}
            if points:
                use = max(points, key=lambda each: points[each])
                worst.append(f"{-points[use]:+.1f} by {name} ({use})")
        if worst:
            said.append(f"{bits.upper()} {' and '.join(worst)}, where at most {TARGETS[bits]:g} were to be lost")
    if count < 2:
        return ""
    return f"Points of top 1 against the float model in the same use, in the worst of {count} uses: {'; '.join(said)}. "
