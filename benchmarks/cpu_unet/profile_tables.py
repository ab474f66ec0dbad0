"""The page's section on where the time goes, from the profile rows."""

from typing import Any

from benchmarks.cpu_unet.contenders import BY_NAME
from benchmarks.cpu_unet.kinds import KINDS, OTHERS, kind_of
from benchmarks.markdown import table

_SHOWN = 12
_INTEGER = (
    "native::product",
    "attention_codes",
    "qconv",
    "qlinear",
    "multiply",
)  # in the names of operators on integers


def profile_lines(cases: list[tuple[str, list[dict[str, Any]]]]) -> list[str]:
    """Return the section's lines; ``cases`` are rows by heading."""
    lines = [
        "## Where the time goes",
        "",
        "One call in PyTorch's profiler, or with OpenVINO's counters, which cost time themselves: *a call* is the time without. "
        "Operators are listed with their own time; `native::` are Halftone's compiled loops; *between operators* is Python, "
        "dispatch, and what the profiler costs. "
        "The ceilings are the best that large products and passes over memory reach here, in the same process.",
        "",
    ]
    for title, rows in cases:
        for row in rows:
            name = row["row"]["contenders"][0]
            found = row["metrics"]
            heading = f"### {BY_NAME[name].title if name in BY_NAME else name}: {title}"
            if "failed" not in found:
                lines += [heading, "", *_profile(found, row["load_average"])]
    return lines


def _profile(found: dict[str, Any], load: float | None) -> list[str]:
    total, operators = found["profiled"], found["operators"]
    sums = dict.fromkeys([*(kind for kind, _ in KINDS), OTHERS], 0.0)
    for each in operators:
        sums[kind_of(each["name"])] += each["seconds"]
    sums["between operators"] = total - sum(each["seconds"] for each in operators)
    work = found["giga_operations"]
    body = []
    for kind, seconds in sums.items():
        rate = f"{work[kind] / seconds:.0f}" if kind in work and seconds > 0 else "-"
        most = _ceiling(kind, found) if kind in work and seconds > 0 else None
        share = f"{100 * work[kind] / seconds / most:.0f}" if most else "-"
        body.append([kind, f"{1e3 * seconds:.1f}", f"{100 * seconds / total:.1f}", rate, share])
    rest = operators[_SHOWN:]
    detail = [
        [
            f"`{each['name']}`",
            kind_of(each["name"]),
            f"{each['times']:.0f}",
            f"{1e3 * each['seconds']:.1f}",
            _share(each, total),
        ]
        for each in operators[:_SHOWN]
    ]
    left = sum(each["seconds"] for each in rest)
    detail.append([f"{len(rest)} others", "", "", f"{1e3 * left:.1f}", f"{100 * left / total:.1f}"])
    ceilings = ", ".join(f"{name.removesuffix(', GOP/s')} {value:g}" for name, value in found["ceilings"].items())
    needed = (
        f"It needs {work['layers']:.0f} giga-operations in layers, {work['attention']:.0f} in attention. "
        if work
        else ""
    )
    return [
        f"A call: {1e3 * found['wall']:.0f} ms; in the profiler {1e3 * total:.0f} ms. {needed}"
        f"Ceilings, GOP/s where nothing else is said: {ceilings}. Load average at the end: {load}.",
        "",
        *table(["kind", "ms", "%", "GOP/s", "% of the ceiling"], body),
        *table(["operator", "kind", "times", "ms", "%"], detail),
    ]


def _ceiling(kind: str, found: dict[str, Any]) -> float | None:
    """Return the most giga-operations a second that this machine reaches in the arithmetic that most of ``kind`` is computed in."""
    inside = [each["name"] for each in found["operators"] if kind_of(each["name"]) == kind]
    integer = bool(inside) and any(part in inside[0] for part in _INTEGER)
    name = "int8" if integer else "bfloat16"
    rates = [value for key, value in found["ceilings"].items() if key.startswith(name)]
    return max(rates, default=None)


def _share(each: dict[str, Any], total: float) -> str:
    return f"{100 * each['seconds'] / total:.1f}"
