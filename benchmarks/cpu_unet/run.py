"""Measure the rows that are missing, one after the other; a row is one JSON file."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cpu_unet.cases import short
from benchmarks.cpu_unet.contenders import BY_NAME, OURS
from benchmarks.cpu_unet.measure import distance, error, footprint, latency, weigh, weight
from benchmarks.cpu_unet.plan import Row, rows
from benchmarks.cpu_unet.process import Failed
from benchmarks.cpu_unet.settings import Settings
from benchmarks.cpu_unet.workshop import REQUIREMENTS, Workshop, shipped
from benchmarks.records import circumstances, readable, there
from halftone.foundation.files import write_atomically

SCHEMA = 1


def run(settings: Settings, say: Callable[[str], None] = print) -> list[str]:
    """Measure all missing rows of the sections asked for and return the names of those in which Halftone failed.

    Another road that cannot run a model is no failure of the study: its row says why, and is not tried again.
    """
    missing = [model for model in settings.trained if not shipped(model)]
    if missing and {"error", "distance"} & set(settings.sections):
        say(f"left out, as it does not ship: {', '.join(missing)}")
    settings = replace(settings, trained=tuple(model for model in settings.trained if model not in missing))
    workshop = Workshop(settings, say)
    asked = rows(settings)
    wanted = [row for row in asked if not (settings.resume and _there(row, settings))]
    say(f"{len(asked)} rows, {len(asked) - len(wanted)} there already, {len(wanted)} to do")
    failed = []
    for number, row in enumerate(wanted, 1):
        began = time.monotonic()
        metrics = _measured(row, workshop)
        seconds = time.monotonic() - began
        content = {"schema": SCHEMA, "row": _plain(row), "protocol": protocol(row, settings), **circumstances(seconds)}
        write_atomically(path_of(row, settings), readable({**content, "metrics": metrics}))
        say(f"[{number}/{len(wanted)}] {row.section}/{row.name}: {_spoken(row, metrics)} ({seconds:.0f} s)")
        if any("failed" in each for name, each in _by_contender(row, metrics).items() if BY_NAME[name].road == OURS):
            failed.append(f"{row.section}/{row.name}")
    return failed


def _by_contender(row: Row, metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = metrics.get("contenders", {row.contenders[0].name: metrics})
    return found


def _measured(row: Row, workshop: Workshop) -> dict[str, Any]:
    (first, *_), case = row.contenders, row.case
    if row.section == "latency":
        assert case is not None
        known = {each.name: size for each in row.contenders if (size := _weight(row, each.name, workshop.settings))}
        weights, failed = weigh(row.contenders, case, known, workshop)
        found = latency(row.contenders, case, weights, workshop)
        found["contenders"] |= {name: {"failed": reason} for name, reason in failed.items()}
        return found
    try:
        if row.section == "footprint":
            assert case is not None
            return footprint(first, case, workshop)
        if row.section == "profile":
            assert case is not None
            return workshop.profile(first, case.model, workshop.inputs(case))
        if row.section == "levers":
            assert case is not None
            return workshop.levers(first, case.model, workshop.inputs(case))
        if row.section == "distance":
            return distance(first, row.model, case, workshop)
        return error(first, row.model, workshop)
    except Failed as reason:
        return {"failed": str(reason)}


def _weight(row: Row, name: str, settings: Settings) -> int | None:
    """Return the bytes of a contender's process from its footprint's row, where there is one."""
    file = settings.results / "footprint" / f"{row.name}-{name}.json"
    memory = json.loads(file.read_text(encoding="utf-8"))["metrics"].get("memory") if file.exists() else None
    return weight(memory) if memory else None


def path_of(row: Row, settings: Settings) -> Path:
    """Return the file of a row."""
    return settings.results / row.section / f"{row.name}.json"


def protocol(row: Row, settings: Settings) -> dict[str, Any]:
    """Return what the numbers of a row depend on: a row that exists with the same protocol is not measured again."""
    facts: dict[str, Any] = {"model": short(row.model), "threads": settings.threads}
    facts["contenders"] = {each.name: {"prepare": each.prepare, "load": each.load} for each in row.contenders}
    facts["packages"] = _packages()
    if row.case is not None:
        facts |= {"pixels": row.case.pixels, "batch": row.case.batch}
    return facts | ({"rounds": settings.rounds} if row.section in ("latency", "levers") else {})


def _packages() -> list[str]:
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _there(row: Row, settings: Settings) -> bool:
    return there(path_of(row, settings), protocol(row, settings))


def _plain(row: Row) -> dict[str, Any]:
    names = [each.name for each in row.contenders]
    case = None if row.case is None else {**asdict(row.case), "model": short(row.model)}
    return {"section": row.section, "name": row.name, "contenders": names, "case": case}


def _spoken(row: Row, metrics: dict[str, Any]) -> str:
    if "failed" in metrics:
        return f"does not run: {metrics['failed']}"
    if row.section == "footprint":
        return f"{metrics['memory']['peak'] / 1e9:.2f} GB, loaded in {metrics['load_seconds']:.1f} s"
    if row.section == "profile":
        return f"{metrics['wall']:.3f} s a call"
    if row.section == "levers":
        return f"{metrics['seconds']['median']:.3f} s a call"
    if row.section in ("error", "distance"):
        return f"relative MSE {metrics['relative_mse']:.3g}"
    times = {name: each.get("median") for name, each in metrics["contenders"].items()}
    return ", ".join(f"{name} {seconds:.3f}" if seconds else f"{name} does not run" for name, seconds in times.items())
