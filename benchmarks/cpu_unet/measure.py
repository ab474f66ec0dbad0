"""What is measured for each kind of row. Contenders take turns; whoever fails is in the row, with its reason."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_unet.cases import Case
from benchmarks.cpu_unet.contenders import ANCHORS, BY_NAME, REFERENCE, Contender
from benchmarks.cpu_unet.inputs import Inputs
from benchmarks.cpu_unet.process import Failed, Process
from benchmarks.cpu_unet.workshop import Workshop
from halftone.evaluate.bench import disk_bytes, speedup

_WARMUP = 1


def footprint(contender: Contender, case: Case, workshop: Workshop) -> dict[str, Any]:
    """Return memory, load time, bytes on disk and the output's error of one contender, from a process of its own."""
    inputs = workshop.inputs(case)
    folder = workshop.prepared(contender, case.model)
    # Read once, so that loading is timed from a warm disk cache whoever ran before.
    _warm(folder / "unet")
    with workshop.start(contender, case.model, inputs) as process:
        for _ in range(2):
            process.ask("call")
        found = {**process.facts, "memory": process.ask("memory"), "disk_bytes": disk_bytes(folder / "unet")}
        if contender.name != REFERENCE:
            found["error"] = _error(process, contender, case.model, inputs, workshop)
    return {**found, "prepared": workshop.facts(contender, case.model)}


def _warm(folder: Path) -> None:
    block = bytearray(2**24)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass


def error(contender: Contender, model: str, workshop: Workshop) -> dict[str, Any]:
    """Return the output's error on calls of the float model's own sampling."""
    inputs = workshop.recorded(model, evaluation=True)
    with workshop.start(contender, model, inputs) as process:
        found = _error(process, contender, model, inputs, workshop)
    size = disk_bytes(workshop.prepared(contender, model) / "unet")
    return {**found, "disk_bytes": size, "prepared": workshop.facts(contender, model)}


def distance(contender: Contender, model: str, case: Case | None, workshop: Workshop) -> dict[str, Any]:
    """Return how far one of our engines' outputs are from those of the engine that defines them, same artifact and inputs."""
    inputs = workshop.recorded(model, evaluation=True) if case is None else workshop.inputs(case)
    place = inputs.with_name(f"{contender.name}.npy")
    outputs = []
    for each in (contender, contender.simulated):
        with workshop.start(each, model, inputs) as process:
            process.ask("outputs", str(place))
        outputs.append(np.load(place).astype(np.float64))
        place.unlink()
    found, wanted = outputs
    return distances(found, wanted, Inputs.load(inputs).timestep)


def _error(process: Process, contender: Contender, model: str, inputs: Path, workshop: Workshop) -> dict[str, Any]:
    """Return distances of a worker's outputs to the float32 model's, over all inputs and call by call."""
    reference = inputs.with_suffix(".reference.npy")
    if not reference.exists():
        with workshop.start(BY_NAME[REFERENCE], model, inputs) as exact:
            exact.ask("outputs", str(reference))
    place = inputs.with_name(f"{contender.name}.npy")
    process.ask("outputs", str(place))
    found, wanted = np.load(place).astype(np.float64), np.load(reference).astype(np.float64)
    place.unlink()
    return distances(found, wanted, Inputs.load(inputs).timestep)


def distances(found: np.ndarray, wanted: np.ndarray, timestep: np.ndarray) -> dict[str, Any]:
    """Return the relative squared error and PSNR of outputs ``[N, ...]``.

    ``relative_mse`` is the squared error over the reference's squares, both summed over everything; ``psnr`` has the reference's
    range as its peak.
    """
    each = ((found - wanted) ** 2).reshape(len(found), -1).sum(1)
    power = (wanted**2).reshape(len(found), -1).sum(1)
    mse = each.sum() / found.size
    peak = wanted.max() - wanted.min()
    return {
        "calls": len(found),
        "relative_mse": float(each.sum() / power.sum()),
        "psnr": float(10 * np.log10(peak**2 / mse)) if mse > 0 else float("inf"),
        "timestep": [int(t) for t in timestep],
        "relative_mse_by_call": [float(f"{value:.4g}") for value in each / power],
    }


def latency(asked: Sequence[Contender], case: Case, weights: dict[str, int], workshop: Workshop) -> dict[str, Any]:
    """Time contenders that take turns, in groups that fit into memory together.

    Args:
        weights: bytes of each contender's process, by name; of those that do not run there are none.
    """
    rows: dict[str, Any] = {}
    inputs, by_name = workshop.inputs(case), {each.name: each for each in asked}
    for number, group in enumerate(groups(list(by_name), weights, workshop.settings.memory)):
        times, failed = _rounds([by_name[name] for name in group], case, inputs, workshop)
        rows |= {name: {"failed": reason} for name, reason in failed.items()}
        for name, own in times.items():
            if name in ANCHORS and name in rows:
                rows[name]["groups"].append({"group": number, "seconds": _spread(own)})
                continue
            found: dict[str, Any] = {**_spread(own), "group": number, "rounds": [round(value, 5) for value in own]}
            found["faster_than"] = {
                anchor: _interval(times[anchor], own) for anchor in ANCHORS if anchor in times and anchor != name
            }
            rows[name] = found | ({"groups": []} if name in ANCHORS else {})
    return {"contenders": rows}


def _spread(own: np.ndarray) -> dict[str, float]:
    names = {"median": 0.5, "p10": 0.1, "p90": 0.9, "fastest": 0.0}
    return {name: round(float(np.quantile(own, share)), 5) for name, share in names.items()}


def _interval(baseline: np.ndarray, own: np.ndarray) -> dict[str, float]:
    found = speedup(baseline, own, seed=0)
    return {"value": found.value, "low": found.low, "high": found.high}


def groups(names: Sequence[str], weights: dict[str, int], budget: int) -> list[list[str]]:
    """Return groups of contenders that fit into ``budget`` bytes together; the anchors are in every one.

    One that fits in no group is alone with the anchors.
    """
    anchors = [name for name in ANCHORS if name in weights]
    base = sum(weights[name] for name in anchors)
    found: list[list[str]] = []
    room: list[int] = []
    # The largest first, each where it fits.
    for name in sorted((n for n in names if n in weights and n not in anchors), key=lambda n: -weights[n]):
        place = next((number for number, left in enumerate(room) if weights[name] <= left), None)
        if place is None:
            found.append([*anchors])
            room.append(budget - base)
            place = len(found) - 1
        found[place].append(name)
        room[place] -= weights[name]
    return found or ([anchors] if anchors else [])


def _rounds(
    group: Sequence[Contender], case: Case, inputs: Path, workshop: Workshop
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return each contender's seconds by round, ``[rounds]``, and why others have none."""
    processes: dict[str, Process] = {}
    failed: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    try:
        for each in group:
            try:
                processes[each.name] = workshop.start(each, case.model, inputs)
            except Failed as reason:
                failed[each.name] = str(reason)
        order = list(processes)
        for number in range(_WARMUP + workshop.settings.rounds):
            # Rotated, so that nobody always runs after the same one; only one computes at a time.
            for place in range(len(order)):
                name = order[(number + place) % len(order)]
                if name in failed:
                    continue
                try:
                    seconds = processes[name].ask("call")["seconds"]
                except Failed as reason:
                    failed[name] = str(reason)
                    continue
                if number >= _WARMUP:
                    times.setdefault(name, []).append(seconds)
    finally:
        for process in processes.values():
            process.stop()
    return {name: np.array(own) for name, own in times.items() if name not in failed}, failed


def weight(memory: dict[str, int]) -> int:
    """Return the bytes that a loaded process takes; its peak, while loading, is another's turn at a time."""
    return memory["anonymous"] + memory["files"]


def weigh(asked: Sequence[Contender], case: Case, known: dict[str, int], workshop: Workshop) -> tuple[dict, dict]:
    """Return the bytes of each contender's process, measured where ``known`` has none, and why others have none."""
    weights, failed = dict(known), {}
    for each in asked:
        if each.name in weights:
            continue
        try:
            with workshop.start(each, case.model, workshop.inputs(case)) as process:
                weights[each.name] = weight(process.ask("memory"))
        except Failed as reason:
            failed[each.name] = str(reason)
    return weights, failed
