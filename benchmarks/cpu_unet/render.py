"""Write the study's page from the rows. Nothing is typed in by hand."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_unet.contenders import ANCHORS, BASELINE, BY_NAME, RIVAL
from benchmarks.cpu_unet.levers import PACKED
from benchmarks.cpu_unet.profile_tables import profile_lines
from benchmarks.cpu_unet.readme import BLOCK, block
from benchmarks.cpu_unet.settings import SECTIONS
from benchmarks.markdown import interval, refreshed, table
from benchmarks.records import rows_of
from halftone.foundation.files import write_atomically

PAGE = "cpu-unet.md"
_COMMAND = "python -m benchmarks.cpu_unet"
Rows = dict[str, dict[str, Any]]


def read(folder: Path) -> dict[str, Rows]:
    """Return the rows by section and name."""
    return rows_of(folder, SECTIONS)


def render(results: Path, docs: Path, readme: Path | None = None) -> list[str]:
    """Write the page, and the README's table, and return what to tell."""
    sections = read(results)
    if not sections:
        return [f"no rows in {results}: nothing to render"]
    write_atomically(docs / PAGE, page(sections))
    table_of = block(sections)
    told = [refreshed(readme, BLOCK, table_of)] if readme and table_of else []
    return [f"wrote {PAGE}", *told, *(f"no rows yet: {section}" for section in SECTIONS if section not in sections)]


def page(sections: dict[str, Rows]) -> str:
    """Return the page's Markdown."""
    lines = [
        "# A U-Net of Stable Diffusion's size on a CPU",
        "",
        f"Made by `{_COMMAND} render` from the rows in `benchmarks/cpu_unet/results/`; do not edit. "
        f"`{_COMMAND} run` measures the rows that are missing.",
        "",
        "`sd-1.5` is the real U-Net of Stable Diffusion 1.5, 860 million parameters, with random weights: speed does not depend on "
        "them. Errors that mean something are those on trained models, further down. Every contender runs in a process of its own "
        "with the same number of threads; of those that are timed together only one computes at a time, they take turns, and a "
        "turn is one untimed call and a timed one, on inputs that follow each other as in sampling.",
        "",
        *_conditions(sections),
    ]
    writers = {"latency": _latency, "footprint": _footprint, "error": _error, "distance": _distance}
    writers |= {"profile": _profile, "levers": _levers}
    for name, write in writers.items():
        if name in sections:
            lines += write(sections[name])
    return "\n".join([*lines, *_failed(sections)]).rstrip() + "\n"


def _conditions(sections: dict[str, Rows]) -> list[str]:
    """Return under what conditions the rows were measured; more than one of a kind is said, not hidden."""
    rows = [row for section in sections.values() for row in section.values()]
    machines = sorted({f"{row['machine']['processor']}, {row['protocol']['threads']} threads" for row in rows})
    versions = sorted({f"torch {row['machine']['torch']}, diffusers {row['machine']['diffusers']}" for row in rows})
    packages = sorted({each.replace("==", " ") for row in rows for each in row["protocol"]["packages"]})
    commits = sorted(
        {f"`{(r['commit']['sha'] or 'unknown')[:10]}`{' (changed)' if r['commit']['dirty'] else ''}" for r in rows}
    )
    loads = [row["load_average"] for row in rows if row["load_average"] is not None]
    busy = f" Load averages at the rows' ends: {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    return [
        f"Measured on {'; '.join(machines)}; {'; '.join(versions)}; {', '.join(packages)}; commits {', '.join(commits)}.{busy}",
        "",
    ]


def _title(name: str) -> str:
    return BY_NAME[name].title if name in BY_NAME else name


def _ordered(names: Iterable[str]) -> list[str]:
    """Return contenders in the order of the table of contenders; ones that are no longer there come last."""
    order = list(BY_NAME)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _cases(rows: Rows) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return rows by case, as headings have it, by model, batch and size."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows.values():
        case = row["row"]["case"]
        found.setdefault((case["model"], case["batch"], case["pixels"]), []).append(row)
    return [
        (f"{model}, {pixels} px, batch {batch}", found[model, batch, pixels]) for model, batch, pixels in sorted(found)
    ]


def _latency(rows: Rows) -> list[str]:
    lines = ["## Latency of a denoiser call", ""]
    head = ["road", "seconds", "10 % to 90 %", *(f"× {_title(name)}" for name in ANCHORS)]
    for title, (row,) in _cases(rows):
        body = []
        contenders = row["metrics"]["contenders"]
        for name in _ordered(contenders):
            found = contenders[name]
            if "failed" in found:
                body.append([_title(name), "-", "-", "-", "-"])
                continue
            spread = f"{found['p10']:.3f} to {found['p90']:.3f}"
            faster = [interval(found["faster_than"].get(anchor)) for anchor in ANCHORS]
            body.append([_title(name), f"{found['median']:.3f}", spread, *faster])
        count = 1 + max((found.get("group", 0) for found in contenders.values()), default=0)
        groups = f", in {count} groups that fit into memory, the two baselines in each" if count > 1 else ""
        note = (
            f"{row['protocol']['rounds']} rounds{groups}; load average at the end {row['load_average']}. "
            "× is how many times faster, with a 95 % interval over rounds."
        )
        lines += [f"### {title}", "", *table(head, body), note, ""]
    return lines


def _footprint(rows: Rows) -> list[str]:
    lines = [
        "## Memory, loading, bytes on disk",
        "",
        "Each from a fresh process. *Peak* is the greatest resident size above that of a process that has only imported the same "
        "libraries, loading included, and with the pages of files that are mapped, which a system short of memory can drop, "
        "so that a row can be a few tenths of a GB too small; "
        "*touched* is what one more call reads or writes of all its pages, libraries included. Loading is from a warm disk cache; "
        "what is prepared in the first call is in the column after it. *Error* is the squared error of the output over the squares "
        "of the float32 one: with random weights, it only says that a road computes the same network.",
        "",
    ]
    head = ["road", "peak, GB", f"× {_title(BASELINE)}", "touched, GB", "load, s", "first call, s", "disk, GB", "error"]
    for title, some in _cases(rows):
        found = {row["row"]["contenders"][0]: row["metrics"] for row in some}
        base = found.get(BASELINE, {}).get("memory")
        body = []
        for name in _ordered(found):
            each = found[name]
            if "failed" in each:
                body.append([_title(name), *["-"] * 7])
                continue
            memory = each["memory"]
            share = f"{memory['peak'] / base['peak']:.2f}" if base else "-"
            distance = f"{each['error']['relative_mse']:.1e}" if "error" in each else "-"
            sizes = [f"{memory['peak'] / 1e9:.2f}", share, f"{memory['touched'] / 1e9:.2f}"]
            times = [f"{each[key]:.1f}" for key in ("load_seconds", "first_call_seconds")]
            body.append([_title(name), *sizes, *times, f"{each['disk_bytes'] / 1e9:.2f}", distance])
        lines += [f"### {title}", "", *table(head, body)]
    return lines


def _error(rows: Rows) -> list[str]:
    lines = [
        "## Error of the output, trained weights",
        "",
        "Calls of the float model's own sampling, others than those calibrated on; all roads that calibrate were given inputs of "
        "the same sampling. *Error* is the squared error over the float32 output's squares; PSNR has the range of that output as "
        "its peak.",
        "",
    ]
    for model, found in sorted(_by_model(rows).items()):
        rival = found.get(RIVAL, {}).get("relative_mse")
        body = []
        for name in _ordered(found):
            each = found[name]
            if "failed" in each:
                body.append([_title(name), *["-"] * 4])
                continue
            share = f"{each['relative_mse'] / rival:.2f}" if rival else "-"
            size = f"{each['disk_bytes'] / 1e6:.1f}"
            body.append([_title(name), f"{each['relative_mse']:.2e}", share, f"{each['psnr']:.1f}", size])
        head = ["road", "error", f"× {_title(RIVAL)}", "PSNR, dB", "disk, MB"]
        calls = next((each["calls"] for each in found.values() if "calls" in each), 0)
        lines += [f"### {model}", "", *table(head, body), f"{calls} calls.", ""]
    return lines


def _by_model(rows: Rows) -> dict[str, Rows]:
    """Return metrics by contender, of rows with one each, by model, and by size where it is a case's."""
    found: dict[str, Rows] = {}
    for row in rows.values():
        case = row["row"]["case"]
        model = f"{case['model']}, {case['pixels']} px" if case else row["protocol"]["model"]
        found.setdefault(model, {})[row["row"]["contenders"][0]] = row["metrics"]
    return found


def _distance(rows: Rows) -> list[str]:
    lines = [
        "## Distance of our engines to the definition",
        "",
        "The same artifact on `simulate`, where numbers are rounded and multiplied in float32, and on the engines that are fast: "
        "the root of the squared difference over the squares of `simulate`'s output. Trained models are called as for the errors "
        "above. A number beside a tie may take the neighbouring code; random weights, as `sd-1.5` has here, spread that as no "
        "trained ones do.",
        "",
    ]
    models = _by_model(rows)
    names = _ordered({name for found in models.values() for name in found})
    columns = sorted(models)
    body = [[_title(name), *(_root(models[model].get(name)) for model in columns)] for name in names]
    return [*lines, *table(["engine", *columns], body), ""]


def _root(found: dict[str, Any] | None) -> str:
    return "-" if found is None or "failed" in found else f"{np.sqrt(found['relative_mse']):.4f}"


def _levers(rows: Rows) -> list[str]:
    lines = [
        "## What each part of our engine is worth",
        "",
        "All parts on, and all but one, taking turns in one process: how much longer a call takes without the part. Parts overlap, "
        "so their gains do not multiply.",
        "",
    ]
    for title, some in _cases(rows):
        for row in some:
            found = row["metrics"]
            if "failed" in found:
                continue
            body = [
                [name, f"{each['median']:.3f}", f"{each['low']:.3f} to {each['high']:.3f}"]
                for name, each in found["without"].items()
                if name != PACKED
                or any("w4" in asked for asked in row["row"]["contenders"])  # changes nothing in others
            ]
            lines += [
                f"### {_title(row['row']['contenders'][0])}: {title}",
                "",
                *table(["without", "times as long", "10 % to 90 %"], body),
                f"A call with all of them: {1e3 * found['seconds']['median']:.0f} ms. {row['protocol']['rounds'] - 1} rounds; load "
                f"average at the end {row['load_average']}.",
                "",
            ]
    return lines


def _profile(rows: Rows) -> list[str]:
    return profile_lines(_cases(rows))


def _failed(sections: dict[str, Rows]) -> list[str]:
    """Return what does not run, with the reasons that the roads gave."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for section, rows in sections.items():
        for row in rows.values():
            found = row["metrics"]
            each = found["contenders"] if section == "latency" else {row["row"]["contenders"][0]: found}
            for name, facts in each.items():
                if "failed" in facts:
                    reasons.setdefault((name, facts["failed"]), []).append(f"{section}/{row['row']['name']}")
    if not reasons:
        return []
    lines = [f"- {_title(name)} ({', '.join(where)}): `{reason}`" for (name, reason), where in sorted(reasons.items())]
    return ["## What does not run", "", *lines, ""]
