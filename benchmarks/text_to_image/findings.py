"""What the rows say about the study's targets, and what became of the pictures where one is missed. No verdict is typed in."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.markdown import table
from benchmarks.text_to_image.plan import BITS, USED
from benchmarks.text_to_image.uses import PLAIN, USES
from halftone.evaluate.paired import Interval
from halftone.evaluate.paired import interval as paired_interval

Row = dict[str, Any]
Rows = dict[str, Row]
# Within how many points of the float model's alignment a model is to stay.
TARGETS = {"w4a8": 2.0, "w8a8": 1.0}
TELLING = 20  # percent: what is right less often has nothing to lose
_METHOD = "Q-Diffusion"


def of(rows: Rows, **wanted: str) -> Row | None:
    """Return the first row whose facts are those wanted."""
    found = (row for row in rows.values() if all(row["row"][key] == value for key, value in wanted.items()))
    return next(found, None)


def pair_of(use: str, bits: str, rows: Rows, quality: Rows) -> tuple[Row, Row] | None:
    """Return Q-Diffusion's row of a use and the float model's; None where one is not there."""
    own = quality if use == PLAIN else rows
    row, reference = of(own, use=use, method=_METHOD, bits=bits), of(own, use=USES[use].like or use, method="float")
    return (row, reference) if row and reference else None


def ranks(row: Row, network: int = 0) -> np.ndarray:
    """Return the place of the right concept among the nearest in a network's features, from 0, ``[seeds, prompts]``."""
    return np.array(row["metrics"]["seen"][network]["ranks"])


def top1(row: Row, network: int = 0) -> list[float]:
    """Return the alignment of each seed, in percent, in a network's features; the first are the model's own."""
    return [100 * value for value in row["metrics"]["seen"][network]["alignment"]["top1_by_seed"]]


def networks(sections: dict[str, Rows]) -> list[str]:
    """Return the names of the networks that looked at the pictures of every row."""
    rows = [row for section in sections.values() for row in section.values() if "seen" in row["metrics"]]
    found = [[seen["alignment"]["features"] for seen in row["metrics"]["seen"]] for row in rows]
    return [name for name in (found[0] if found else []) if all(name in each for each in found)]


def lost(row: Row, reference: Row, network: int = 0) -> Interval:
    """Return the points of top 1 that a model loses against the float model in the same use, with a 95 % interval over prompts.

    Pictures of one prompt are no independent ones: prompts are drawn, with all their seeds.
    """
    mine, theirs = (ranks(each, network) < 1 for each in (row, reference))
    return paired_interval(100.0 * (theirs.astype(float) - mine).mean(axis=0), 0)


def verdict(points: Interval, reference: Row, bits: str, network: int = 0) -> str:
    """Return whether the target is met, and whether that is sure; ``none`` where the float model is hardly ever right."""
    wanted = TARGETS[bits]
    if np.mean(top1(reference, network)) < TELLING:
        return "none"
    if points.value <= wanted:
        return "surely met" if points.high <= wanted else "met"
    return "surely missed" if points.low > wanted else "missed"


@dataclass(frozen=True)
class Tipped:
    """Pictures that changed sides, in percent of all.

    Attributes:
        fell, rose: the right concept was the nearest before and is not now; the other way round.
        near: of those that fell, how many have it among the nearest five; None where none fell.
    """

    fell: float
    rose: float
    near: float | None

    @property
    def shown(self) -> str:
        """``near`` for a table."""
        return "-" if self.near is None else f"{self.near:.0f}"


def tipped(before: np.ndarray, after: np.ndarray) -> Tipped:
    """Return what changed sides between two sets of pictures of the same prompts, from the places of the right concept."""
    fell, rose = (before < 1) & (after >= 1), (before >= 1) & (after < 1)
    near = 100 * float((after[fell] < 5).mean()) if fell.any() else None
    return Tipped(100 * float(fell.mean()), 100 * float(rose.mean()), near)


def findings(sections: dict[str, Rows]) -> list[str]:
    """Return the section on targets, and on what tipped in each use."""
    quality, rows = sections.get("quality", {}), sections.get("uses", {})
    looked = networks(sections)
    lines = [
        line
        for number, name in enumerate(looked)
        for bits in USED
        for line in _target(bits, rows, quality, number, name)
    ]
    lines += [
        line for bits in BITS for line in (_beside_linear(bits, quality), _another_picture(bits, quality)) if line
    ]
    if not lines:
        return []
    return ["## Findings", "", *lines, "", *_sides(rows, quality)]


def _target(bits: str, rows: Rows, quality: Rows, network: int, name: str) -> list[str]:
    """Say in how many uses the target is met, and what happened in those where it is not; "met" is said when all are there."""
    judged = {}
    for use in USES:
        found = pair_of(use, bits, rows, quality)
        if found:
            points = lost(*found, network)
            judged[use] = verdict(points, found[1], bits, network), points, *found
    told = {use: each for use, each in judged.items() if each[0] != "none"}
    if not told:
        return []
    met = [use for use, (said, *_) in told.items() if said.endswith("met")]
    sure = sum(said == "surely met" for said, *_ in told.values())
    missing, untold = len(USES) - len(judged), len(judged) - len(told)
    word = "Not met" if len(met) < len(told) else "Met" if not missing else "Met so far"
    lines = [
        f"- *Our target:* percentage points of top 1, by {name}, that {bits.upper()} loses in any use: at most {TARGETS[bits]:g}. "
        f"***{word}:*** in {len(met)} of {len(told)} uses, surely in {sure}"
        + (f"; {untold} in which the float model itself is hardly ever right are left out" if untold else "")
        + (f"; {missing} are not measured yet" if missing else "")
        + "."
    ]
    for use, (said, points, row, reference) in told.items():
        if not said.endswith("met"):
            lines.append(
                f"    - *{use}*, {said}: {_points(points)} points lost. {_why(use, bits, row, reference, rows, network)}"
            )
    return lines


def _points(found: Interval) -> str:
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _why(use: str, bits: str, row: Row, reference: Row, rows: Rows, network: int) -> str:
    """Return what became of the pictures that are no longer right."""
    change = tipped(ranks(reference, network), ranks(row, network))
    text = (
        f"{change.fell:.1f} % of the pictures fell out and {change.rose:.1f} % came in; of those that fell, {change.shown} % "
        "have the right concept among the nearest five."
    )
    other = between_seeds(reference, network)
    if other:
        text += f" Between two noises of the float model alone it is {other.fell:.1f} % out and {other.rose:.1f} % in."
    again = of(rows, use=f"{use}, recalibrated", method=_METHOD, bits=bits)
    if again:
        text += f" Calibrated with this sampler: {_points(lost(again, reference, network))} points lost."
    return text


def between_seeds(reference: Row, network: int = 0) -> Tipped | None:
    """Return what tips between two noises of the float model; None of one alone."""
    own = ranks(reference, network)
    return tipped(own[0], own[1]) if len(own) > 1 else None


def _beside_linear(bits: str, quality: Rows) -> str:
    """Say by how much Q-Diffusion is nearer to the float model's pictures than nearest rounding: decibels, averaged by prompt."""
    mine, linear = (of(quality, method=method, bits=bits) for method in (_METHOD, "linear"))
    if not mine or not linear:
        return ""
    ours, theirs = (np.maximum(np.array(each["metrics"]["image_mse"]), 1e-10) for each in (mine, linear))
    gains = 10 * np.log10(theirs / ours)
    gain = paired_interval(
        gains.reshape(len(ranks(mine)), -1).mean(axis=0), 0
    )  # pictures of a prompt are drawn together
    word = "nearer to" if gain.low > 0 else "farther from" if gain.high < 0 else "neither nearer to nor farther from"
    reference = of(quality, method="float")
    points = (
        [f"{_points(lost(each, reference))} points of top 1" for each in (mine, linear)] if reference else ["-", "-"]
    )
    return (
        f"- {bits.upper()}: Q-Diffusion's pictures are {word} the float model's than nearest rounding's, by {gain.value:+.1f} dB "
        f"of PSNR [{gain.low:+.1f}, {gain.high:+.1f}]; it loses {points[0]}, nearest rounding {points[1]}."
    )


def _another_picture(bits: str, quality: Rows) -> str:
    """Say how many pictures became other ones: as far off, in what the network sees, as those of another noise."""
    row, reference = of(quality, method=_METHOD, bits=bits), of(quality, method="float")
    if not row or not reference or not reference["metrics"].get("between_seeds"):
        return ""
    far = float(np.median(reference["metrics"]["between_seeds"]["moved"]))
    moved = np.array(row["metrics"]["moved"])
    other = moved >= far
    text = (
        f"- {bits.upper()}: {100 * other.mean():.1f} % of the pictures became other ones, as far from the float model's as the "
        f"median picture from other noise ({far:.2f}); the median picture moved {np.median(moved):.3f}."
    )
    if other.any():
        now, before = (100 * float((ranks(each).flatten()[other] < 1).mean()) for each in (row, reference))
        text += (
            f" Of those, {now:.0f} % show what is named; of the float model's pictures in their place, {before:.0f} %."
        )
    return text


def _sides(rows: Rows, quality: Rows) -> list[str]:
    """Return the table of what tipped in each use."""
    head = ["use", *(f"{bits.upper()} {word}" for bits in USED for word in ("fell", "rose", "near, % of fell"))]
    body = []
    for use in USES:
        pairs = [pair_of(use, bits, rows, quality) for bits in USED]
        cells: list[str] = []
        for pair in pairs:
            change = tipped(ranks(pair[1]), ranks(pair[0])) if pair else None
            cells += [f"{change.fell:.1f}", f"{change.rose:.1f}", change.shown] if change else ["-"] * 3
        reference = next((pair[1] for pair in pairs if pair), None)
        other = between_seeds(reference) if reference else None
        if reference:
            body.append([use, *cells, f"{other.fell:.1f}, {other.rose:.1f}" if other else "-"])
    note = (
        "Percent of the pictures: *fell*, the concept that the prompt names was the nearest in the float model's picture and is "
        "not now; *rose*, the other way round; *near*, it is still among the nearest five. The last column is what another noise "
        "does to the float model."
    )
    return [note, "", *table([*head, "float, other noise: fell, rose"], body)] if body else []
