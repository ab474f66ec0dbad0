"""Write the study's page from the rows. Nothing is typed in by hand."""

from pathlib import Path
from typing import Any

from benchmarks.markdown import table
from benchmarks.quantizing.settings import SECTIONS
from benchmarks.records import rows_of
from halftone.foundation.files import write_atomically

PAGE = "quantizing.md"
_COMMAND = "python -m benchmarks.quantizing"
_DAY, _HOUR = 86400, 3600
_RATES = (10, 50, 200)  # TFLOP/s sustained


def render(results: Path, docs: Path) -> list[str]:
    """Write the page and return what to tell."""
    sections = rows_of(results, SECTIONS)
    if not sections:
        return [f"no rows in {results}: nothing to render"]
    write_atomically(docs / PAGE, page(sections))
    return [f"wrote {PAGE}", *(f"no rows yet: {section}" for section in SECTIONS if section not in sections)]


def page(sections: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the page's Markdown."""
    lines = [
        "# Quantizing a U-Net of Stable Diffusion's size",
        "",
        f"Made by `{_COMMAND} render` from the rows in `benchmarks/quantizing/results/`; do not edit. "
        f"`{_COMMAND} run` measures the rows that are missing.",
        "",
        "The real U-Net of Stable Diffusion 1.5, 860 million parameters, with random weights: time and memory do not depend "
        "on them.",
        "",
    ]
    lines += _whole(sections.get("whole", {}))
    blocks = sections.get("blocks", {})
    lines += _blocks(blocks)
    lines += _bounded(sections.get("bounded", {}))
    lines += _elsewhere(sections.get("arithmetic", {}), blocks)
    return "\n".join(lines).rstrip() + "\n"


def _where(row: dict[str, Any]) -> str:
    machine = row["machine"]
    on = (
        machine["cuda"]
        if row["protocol"].get("device", "cpu") != "cpu"
        else f"{machine['processor']}, {machine['threads']} threads"
    )
    sha = (row["commit"]["sha"] or "unknown")[:10]
    return f"{on}; torch {machine['torch']}; commit `{sha}`; load average at the end {row['load_average']}"


def _whole(rows: dict[str, dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    body, steps = [], []
    for row in rows.values():
        given, found = row["protocol"], row["metrics"]
        plan, memory = found["plan"].get("seconds"), found["plan"].get("memory")
        expected = f"{plan['total'][0] / 60:.0f} to {plan['total'][1] / 60:.0f}" if plan else "-"
        body.append(
            [
                f"{given['recipe']}, {given['budget']}",
                f"{found['seconds'] / 60:.1f}",
                expected,
                f"{found['peak'] / 1e9:.1f}",
                f"{memory['held'] / 1e9:.1f}" if memory else "-",
                f"{found['disk_bytes'] / 1e9:.3f}",
                f"{found['disk_bytes'] / (found['float_bytes'] / 2):.3f}",
            ]
        )
        each = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in found["by_step"].items())
        steps.append(f"- {given['recipe']}, {given['budget']}: {each}. {_where(row)}.")
    head = ["recipe, budget", "minutes", "planned, min", "peak, GB", "planned, GB", "on disk, GB", "of bfloat16"]
    return [
        "## A whole quantization",
        "",
        "`halftone quantize MODEL --recipe RECIPE --budget BUDGET --prompts captions.txt -o OUT`, from the start of the command to "
        "its end, beside what `halftone inspect --plan MODEL` says before. The peak is that of the whole process, libraries "
        "included; *planned* is without them and without the pipeline's other parts.",
        "",
        *table(head, body),
        "Minutes by step:",
        "",
        *steps,
        "",
    ]


def _blocks(rows: dict[str, dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Block reconstruction at the paper's settings",
        "",
        "Each unit's iteration was timed at two batches, and the paper's batch extrapolated from them: a part that every sample "
        "adds, and a part that does not depend on the batch (soft rounding, the regulariser, Adam). The whole is the paper's "
        "number of iterations of all units, one after the other, without walking and judging, which add a few per cent. Where the "
        "larger batch took no longer than the smaller, which is noise, the unit is counted as if samples cost nothing: at least "
        "(≥) that.",
        "",
    ]
    for row in rows.values():
        given, found = row["protocol"], row["metrics"]
        days, few_many = found["seconds"] / _DAY, " and ".join(str(size) for size in given["batches"])
        body = [
            [
                f"`{path}`",
                *(f"{unit['seconds'][str(size)]:.2f}" for size in given["batches"]),
                f"{'' if unit['sample'] else '≥ '}{unit['iteration']:.2f}",
                f"{unit['iteration'] * found['iterations'] / 3600:.1f}",
            ]
            for path, unit in found["units"].items()
        ]
        head = [
            "unit",
            *(f"s, batch {size}" for size in given["batches"]),
            f"s, batch {found['batch']}",
            "hours in all",
        ]
        lines += [
            f"### {given['recipe']}, {given['pixels']} px, {given['device']}",
            "",
            f"{found['iterations']} iterations of batch {found['batch']}: {found['iteration']:.1f} s for one of every unit, "
            f"about **{days:.0f} days** for all. Timed at batches {few_many}. {_where(row)}.",
            "",
            *table(head, body),
        ]
    return lines


def _bounded(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return what bounded memory came to, whether the time foretold was the time taken, and what a kill cost."""
    lines = []
    for row in rows.values():
        given, found = row["protocol"], row["metrics"]
        whole, killed, resumed, learned = (
            f"{seconds / 60:.1f}"
            for seconds in (
                *(found["command_seconds"][key] for key in ("whole", "killed", "resumed")),
                found["seconds"],
            )
        )
        peak, disk = f"{found['peak'] / 1e9:.1f} GB", f"{found['disk'] / 1e9:.2f} GB"
        told = ", ".join(f"{100 * float(share):.0f} %: {value:.2f}" for share, value in found["promised"].items())
        same = "the same bytes" if found["same_bytes"] else "**other bytes**"
        lines += [
            "## Within a bound, killed and resumed",
            "",
            f"Block reconstruction alone (`benchmarks/quantizing/{given['recipe']}`: a few iterations on a few samples) with "
            f"`--memory {given['memory']} --keep-as {given['keep']}`: {found['blocks']} blocks in {learned} minutes. The whole "
            f"process peaked at {peak} and had up to {disk} of unfinished work on disk. The time foretold over the time it "
            f"took, at shares of that time: {told}. Killed after {found['killed_at']} blocks ({killed} minutes) and resumed, it "
            f"took {resumed} minutes more and gave {same}; without the kill the command takes {whole}. {_where(row)}.",
            "",
        ]
    return lines


def _elsewhere(rows: dict[str, dict[str, Any]], blocks: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the arithmetic alone takes on machines that were not timed; nothing of it is measured."""
    if not rows:
        return []
    lines = ["## On a GPU", ""]
    if not any(row["protocol"]["device"] != "cpu" for row in blocks.values()):
        lines += [f"Not timed: no GPU was at hand (`{_COMMAND} run --only blocks --device cuda` times it).", ""]
    for row in rows.values():
        given, found = row["protocol"], row["metrics"]
        operations = 2 * found["macs"]
        same = [
            each["metrics"]["iteration"]
            for each in blocks.values()
            if all(each["protocol"][key] == given[key] for key in given) and each["protocol"]["device"] == "cpu"
        ]
        done = f", of which the CPU above does {operations / same[0] / 1e9:.0f} GFLOP/s" if same else ""
        lines += [
            f"{given['recipe']}, {given['pixels']} px: a call is {found['forward_macs'] / 1e9:.0f} billion multiply-accumulates, "
            f"an iteration of batch {found['batch']} of every unit, forward and backward, {operations / 1e12:.0f} TFLOP{done}. The "
            f"arithmetic of all {found['iterations']} iterations alone, at a sustained rate, takes:",
            "",
            *table(
                ["TFLOP/s", "hours"],
                [[str(rate), f"{found['iterations'] * operations / (rate * 1e12) / _HOUR:.1f}"] for rate in _RATES],
            ),
        ]
    return lines
