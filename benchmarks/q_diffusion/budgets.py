"""What the smaller budgets lose: Q-Diffusion's rows at each budget, those of the headline among them."""

from benchmarks.q_diffusion.plan import BUDGETED
from benchmarks.q_diffusion.results import Result, Section, comparable, pick, removed
from benchmarks.q_diffusion.tables import distance, interval, minutes, over_float, share, table
from halftone.recipes import BUDGETS


def at_budgets(sections: dict[str, Section], bits: str) -> dict[str, Result]:
    """Return Q-Diffusion's rows by budget, smallest first; the headline's main row stands for its own budget."""
    found = {}
    for row in (
        *sections.get("budgets", {}).values(),
        pick(sections.get("headline", {}), method="q-diffusion", bits=bits, seed="main"),
    ):
        if row is not None and row.labels["method"] == "q-diffusion" and row.labels["bits"] == bits:
            found.setdefault(row.data["budget"], row)
    return {budget: found[budget] for budget in BUDGETS if budget in found}


def reference(sections: dict[str, Section], row: Result) -> Result | None:
    """Return the float model's row with as many samples as ``row``."""
    floats = [sections[name]["float"] for name in ("budgets", "headline") if "float" in sections.get(name, {})]
    return next((each for each in floats if each.protocol["samples"] == row.protocol["samples"]), None)


def linear(sections: dict[str, Section], row: Result) -> Result | None:
    """Return linear quantization's row at the same bits, where the two are pairs."""
    found = pick(sections.get("headline", {}), method="rtn", bits=row.labels["bits"], seed="main")
    return found if comparable(row, found) else None


def budgets_table(sections: dict[str, Section]) -> list[str]:
    """Return the table of all budgets that were measured, each beside the largest of its bits."""
    head = ["bits", "budget", "samples", "PSNR, dB", "lost, dB", "FD", "over float", "linear's error removed"]
    body = []
    for bits in BUDGETED:
        rows = at_budgets(sections, bits)
        for budget, row in rows.items():
            rival, largest = linear(sections, row), rows[list(rows)[-1]]
            body.append(
                [
                    bits.upper(),
                    budget,
                    str(row.protocol["samples"]),
                    interval((row.paired or {}).get("psnr")),
                    _lost(row, largest),
                    distance(row),
                    over_float(row, reference(sections, row)),
                    share(removed(row, rival).value) if rival else "-",
                    minutes(row),
                ]
            )
    return table([*head, "quantized in, min"], body) if body else []


def _lost(row: Result, largest: Result) -> str:
    """Return the decibels that a budget loses to the largest one."""
    values = [(each.paired or {}).get("psnr", {}).get("value") for each in (largest, row)]
    if row is largest or not comparable(row, largest) or not all(isinstance(value, float) for value in values):
        return "-"
    return f"{values[0] - values[1]:.2f}"


def resumed(sections: dict[str, Section]) -> bool:
    """Whether the seconds of any row are those of the last part of an interrupted run."""
    rows = [row for bits in BUDGETED for row in at_budgets(sections, bits).values()]
    return any(row.metrics["quantize"]["resumed"] for row in rows)
