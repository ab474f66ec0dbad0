"""The README's table of the small Stable Diffusion: what its pictures are worth in low bits."""

import numpy as np

from benchmarks.markdown import interval, table
from benchmarks.text_to_image.findings import TARGETS, Rows, lost, of, pair_of, top1
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
    first = reference["metrics"]["seen"][0]["alignment"]
    network, known = first["features"], first["concepts"]
    head = ["", "bits", "top 1, %", "top 5, %", "PSNR to float, dB", "U-Net, MB"]
    note = (
        f"`zoo:{how['model']['name']}`: {how['prompts']} prompts, {len(how['seeds'])} seeds, {how['steps']} steps, guidance "
        f"{how['guidance']:g}. *Top 1*: how often the nearest real picture, of {known} concepts, is one of what the prompt names, "
        f"in the features of {network}. {_uses(sections)}Everything else is in [the study](docs/results/{_PAGE}), made by "
        "`python -m benchmarks.text_to_image run` and `render`."
    )
    return "\n".join([*table(head, body), note, ""])


def _right(row: dict) -> list[str]:
    return [f"{np.mean(top1(row)):.1f}", f"{100 * row['metrics']['seen'][0]['alignment']['top5']:.1f}"]


def _uses(sections: dict[str, Rows]) -> str:
    """Return what Q-Diffusion changes in the worst of all uses that were measured, by bits."""
    said, counts = [], []
    for bits in USED:
        found = {use: pair_of(use, bits, sections.get("uses", {}), sections.get("quality", {})) for use in USES}
        points = {use: lost(*pair).value for use, pair in found.items() if pair}
        if points:
            worst = max(points, key=lambda use: points[use])
            counts.append(len(points))
            said.append(
                f"{bits.upper()} {-points[worst]:+.1f} points ({worst}; at most {TARGETS[bits]:g} were to be lost)"
            )
    if not said or max(counts) < 2:
        return ""
    return f"Q-Diffusion's top 1 against the float model's in the same use, in the worst of {max(counts)} uses: {', '.join(said)}. "
