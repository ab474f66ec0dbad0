"""Published findings held against the rows. No verdict is typed in: each is computed from intervals.

Verdicts go by the mean image's PSNR. The pooled error, which stands beside it, hangs on the few images that tip over into another
garment: its interval over 2,000 images is ten times as wide.
"""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.q_diffusion import reasons
from benchmarks.q_diffusion.budgets import at_budgets, linear, reference
from benchmarks.q_diffusion.details import drift, widest
from benchmarks.q_diffusion.plan import BUDGETED
from benchmarks.q_diffusion.results import Result, Section, change, comparable, gain, pick, removed
from benchmarks.q_diffusion.seeds import Spread, of_linear_removed, over_float, spoken

SHOWS, NOT, OPEN = "shows", "does not show", "is not decided"
_TARGET = "(target) "
# dB of the mean image, a tenth of its error. A difference may be certain and yet too small to matter: published claims are about
# large ones.
MATTERS = 0.4


@dataclass(frozen=True)
class Finding:
    """A published claim, or a target of the study: whether it shows here, the numbers that say so, why it does not."""

    claim: str
    verdict: str
    evidence: str
    reason: str = ""

    def text(self) -> str:
        """Return the finding as an item of a list."""
        if self.claim.startswith(_TARGET):
            verdict = {SHOWS: "met", NOT: "not met"}.get(self.verdict, self.verdict)
            helps = f" *What helps:* {self.reason}" if self.reason and self.verdict != SHOWS else ""
            return f"- *Our target:* {self.claim.removeprefix(_TARGET)} ***{verdict.capitalize()}:*** {self.evidence}{helps}"
        reason = f" *Why:* {self.reason}" if self.reason and self.verdict != SHOWS else ""
        return f"- *Published:* {self.claim} *Here it **{self.verdict}**:* {self.evidence}{reason}"


def percent(value: float) -> str:
    """Return a share as a signed percentage; as a factor where it is large."""
    return f"{value:+.0%}" if value < 3 else f"×{value + 1:.1f}"


def effect(what: str, a: Result, b: Result) -> tuple[str, float, float]:
    """Return a sentence about the images of ``a`` beside those of ``b``, and the bounds of the mean image's gain in dB."""
    each, found = gain(a, b), change(a, b)
    count = min(len(a.errors), len(b.errors))
    images = f"the mean image's PSNR by {each.value:+.2f} dB (95 % interval {each.low:+.2f} to {each.high:+.2f}, {count} pairs)"
    pooled = f"the pooled error by {percent(found.value)} ({percent(found.low)} to {percent(found.high)})"
    return f"{what} changes {images}, {pooled}", each.low, each.high


def _matters(low: float, high: float) -> str:
    """Whether a change is for the worse."""
    if high < -MATTERS:
        return SHOWS
    return NOT if low > -MATTERS else OPEN


def _negligible(low: float, high: float) -> str:
    """Whether a change is as small as published."""
    if low > -MATTERS and high < MATTERS:
        return SHOWS
    return NOT if low > MATTERS or high < -MATTERS else OPEN


def _brings_nothing(low: float, high: float) -> str:
    if high < MATTERS:
        return SHOWS
    return NOT if low > MATTERS else OPEN


def _claim(
    claim: str,
    what: str,
    a: Result | None,
    b: Result | None,
    judge: Callable[[float, float], str],
    reason: str = "",
) -> list[Finding]:
    if a is None or b is None or not comparable(a, b):
        return []
    sentence, low, high = effect(what, a, b)
    return [Finding(claim, judge(low, high), f"{sentence}.", reason)]


def headline(rows: Section) -> list[Finding]:
    """Q-Diffusion beside its rivals, and the study's targets."""
    found = []
    for bits in dict.fromkeys(
        row.labels["bits"] for row in rows.values() if row.labels.get("bits", "").startswith("w")
    ):
        mine, rtn, gptq = (pick(rows, method=m, bits=bits, seed="main") for m in ("q-diffusion", "rtn", "gptq"))
        if mine is None:
            continue
        found += _removed_target(mine, rtn, of_linear_removed(rows, "q-diffusion", bits))
        found += _claim(
            f"{_TARGET}{bits}: the whole recipe beats GPTQ clearly (what block reconstruction has in that: the ablation).",
            "GPTQ in its place",
            gptq,
            mine,
            _matters,
        )
    mine = pick(rows, method="q-diffusion", bits="w4a8", seed="main")
    return found + _distance_target(mine, rows.get("float"), over_float(rows, "q-diffusion", "w4a8"))


def _removed_target(mine: Result, rtn: Result | None, spread: Spread | None = None) -> list[Finding]:
    """The target for the paired error, at every budget; beside it the spread over calibration seeds."""
    if rtn is None or not comparable(mine, rtn):
        return []
    share = removed(mine, rtn)
    met = SHOWS if share.low >= 0.95 else NOT if share.high < 0.95 else OPEN
    evidence = f"{share.value:.1%} at budget {mine.data['budget']} (95 % interval {share.low:.1%} to {share.high:.1%})."
    evidence += spoken(spread)
    return [
        Finding(f"{_TARGET}{mine.labels['bits']}: at least 95 % of linear's excess error is removed.", met, evidence)
    ]


def _distance_target(
    mine: Result | None, reference: Result | None, spread: Spread | None = None, helps: str = ""
) -> list[Finding]:
    """The target for the Fréchet distance, which is stated for two budgets; beside it the spread over calibration seeds."""
    if mine is None or reference is None or mine.distribution is None or reference.distribution is None:
        return []
    if mine.protocol["samples"] != reference.protocol["samples"]:
        return []
    limit = {"paper": 0.03, "demo": 0.10}.get(mine.data["budget"])
    if limit is None:
        return []
    over = mine.distribution["value"] / reference.distribution["value"] - 1
    verdict = SHOWS if over <= limit else NOT
    claim = f"{_TARGET}w4a8 at budget {mine.data['budget']}: distance at most {limit:.0%} above the float model's."
    evidence = f"{over:+.1%}, from one set of {mine.protocol['samples']} samples.{spoken(spread, sign='+')}"
    return [Finding(claim, verdict, evidence, helps)]


def other_budgets(sections: dict[str, Section]) -> list[Finding]:
    """The study's targets at the budgets that are not the headline's."""
    found: list[Finding] = []
    for bits in BUDGETED:
        for row in at_budgets(sections, bits).values():
            if row.name not in sections.get("budgets", {}):
                continue
            found += _removed_target(row, linear(sections, row))
            if bits == "w4a8":
                found += _distance_target(row, reference(sections, row), helps=reasons.levers(sections))
    return found


def ablation(sections: dict[str, Section]) -> list[Finding]:
    """Calibration matters for weights, split for activations (research: the authors' talk)."""
    rows = sections["ablation"]
    full = {"calibration": "uniform", "split": "auto", "reconstruction": "ada_round"}

    def cell(bits: str, **changed: str) -> Result | None:
        return pick(rows, bits=bits, **{**full, **changed})

    found: list[Finding] = []
    for bits, words in (("w4a32", "for weights alone"), ("w4a8", "with 8-bit activations")):
        whole = cell(bits)
        claim = f"{words}, calibrating over all timesteps matters ({bits})."
        found += _claim(
            claim, "calibrating on the first tenth only", cell(bits, calibration="first-tenth"), whole, _matters
        )
        if bits == "w4a32":
            found += _claim(
                f"{words}, splitting the shortcuts matters little.",
                "not splitting",
                cell(bits, split="none"),
                whole,
                _negligible,
                reasons.split_weights(sections),
            )
        else:
            claim = f"{words}, splitting the shortcuts is what saves the model."
            found += _claim(claim, "not splitting", cell(bits, split="none"), whole, _matters)
        claim = f"{words}, reconstruction matters."
        found += _claim(claim, "rounding to nearest", cell(bits, reconstruction="nearest"), whole, _matters)
    whole, other = (pick(rows, bits="w4a8", without=what) for what in ("nothing", "block reconstruction"))
    claim = (
        f"{_TARGET}w4a8: block reconstruction earns its time where GPTQ came before and the whole network comes after."
    )
    return found + _claim(claim, "leaving it out", other, whole, _matters) + _published(sections)


def _published(sections: dict[str, Section]) -> list[Finding]:
    """The published sequence of steps beside rounding to nearest; in both the edges are as narrow as all other layers."""
    mine = pick(sections.get("ablation", {}), without="anything not in the paper")
    nearest = pick(sections.get("edges", {}), method="rtn", edges="narrow")
    if mine is None or nearest is None or not comparable(mine, nearest):
        return []
    budget, reason = (
        mine.data["budget"],
        "its AdaRound starts from the float weights and needs thousands of iterations.",
    )
    claim = f"at 4 and 8 bits the published steps alone keep the model's quality (here at budget {budget}, far below theirs)."
    sentence, low, high = effect("linear in their place", nearest, mine)
    lost = removed(mine, nearest)
    verdict = SHOWS if lost.low >= 0.9 else NOT
    evidence = f"{lost.value:.0%} of linear's error is removed ({lost.low:.0%} to {lost.high:.0%}); {sentence}."
    return [Finding(claim, verdict, evidence, reason)]


def timesteps(sections: dict[str, Section]) -> list[Finding]:
    """Coverage of the whole trajectory matters, the number of samples hardly does."""
    found: list[Finding] = []
    rows = {name: row for name, row in sections["timesteps"].items() if "without" not in row.labels}
    whole = pick(rows, select="uniform", samples="budget")
    for part in ("first-half", "middle-half", "last-half"):
        claim = f"the {part.replace('-', ' ')} of the steps alone is a bad calibration."
        reason = reasons.middle_half(sections) if part == "middle-half" else ""
        found += _claim(claim, "it", pick(rows, select=part), whole, _matters, reason)
    for other in ("random", "normal"):
        claim = f"{other} selection brings nothing."
        found += _claim(claim, f"{other} selection", pick(rows, select=other), whole, _brings_nothing)
    many = pick(rows, samples="1024")
    for count in ("64", "256"):
        claim = "once the timesteps are covered, the number of samples hardly matters."
        what = f"{count} samples in place of 1024"
        found += _claim(claim, what, pick(rows, samples=count), many, _negligible, reasons.samples(sections))
    return found


def samplers(rows: Section) -> list[Finding]:
    """Weights alone carry over to another sampler, static activation scales do not."""
    found: list[Finding] = []
    for bits, published, judge in (
        ("w4a32", "weights calibrated for DDIM serve DPM-Solver++ as well.", _negligible),
        ("w4a8", "activation scales calibrated for DDIM hurt DPM-Solver++; recalibrating repairs it.", _matters),
    ):
        carried, fresh = rows.get(f"{bits}-ddim-to-dpm"), rows.get(f"{bits}-dpm-to-dpm")
        what = "not recalibrating"
        found += _claim(f"{bits}: {published}", what, carried, fresh, judge, reasons.another_sampler(rows))
    return found


_NEAR, _FAR = 0.10, 0.15  # how much a span changes from a call to the next, and to one half a trajectory away
_APART = 10.0  # times, between the parts of a shortcut


def ranges(rows: Section) -> list[Finding]:
    """Activations drift with t; a shortcut joins two ranges (research: the paper's and the talk's figures)."""
    row = rows.get("float")
    if row is None:
        return []
    near, far = drift(row.metrics["ranges"]["layers"].values())
    evidence = (
        f"in the median layer the span between quantiles changes by {near:.0%} from one call to the next, and by {far:.0%} "
        "between calls half a trajectory apart."
    )
    claim = (
        "activation ranges drift slowly over the steps: those of neighbours are alike, those of distant steps are not."
    )
    found = [Finding(claim, SHOWS if near < _NEAR and far > _FAR else NOT, evidence)]
    apart = {
        path: widest(facts["parts"])
        for path, facts in row.metrics["ranges"]["concatenations"].items()
        if path.endswith("conv_shortcut")
    }
    if apart:
        path, times = max(apart.items(), key=lambda item: item[1])
        largest = max(
            abs(value)
            for facts in row.metrics["ranges"]["concatenations"].values()
            for part in facts["parts"]
            for value in (min(part["minimum"]), max(part["maximum"]))
        )
        evidence = f"at most {times:.1f} times, in `{path}`; the largest number in any of them is {largest:.0f}."
        reason = (
            "nothing in this model grows as large as the hundreds and thousands that were seen there; the authors call it a matter "
            "of the model, mild in LSUN's. What the split is worth all the same, the ablation has."
        )
        claim = "the two parts of a shortcut's input have very different ranges, up to 200 times."
        found.append(Finding(claim, SHOWS if times >= _APART else NOT, evidence, reason))
    return found


def trajectory(rows: Section) -> list[Finding]:
    """The talk's figure: linear at 4 bits drifts away, the method at 4 bits does not."""
    ends = {name: row.metrics["trail"]["x_mse"][-1] for name, row in rows.items()}
    mine, nearest = ends.get("q-diffusion-w4a32"), ends.get("linear-w4a32")
    if mine is None or nearest is None:
        return []
    steps = rows["linear-w4a32"].protocol["steps"]
    evidence = (
        f"at the last of {steps} calls the error of x_t is {nearest:.3g} for linear and {mine:.3g} for Q-Diffusion"
    )
    five, eight = ends.get("linear-w5a32"), ends.get("linear-w8a32")
    if five is not None and eight is not None:
        evidence += f"; linear has {five:.3g} at 5 bits and {eight:.3g} at 8"
        if eight > nearest:
            evidence += (
                ", where a constant decides that rounding the last layer adds to every call (see the bias correction)"
            )
    claim = "at 4 bits, linear's error piles up along the trajectory and Q-Diffusion's stays far below it."
    return [Finding(claim, SHOWS if mine < nearest / 2 else NOT, evidence + ".")]
