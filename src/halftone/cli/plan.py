"""``halftone inspect --plan``: what a recipe would make of a model, before any work."""

from typing import TYPE_CHECKING, Any

from halftone.cli.options import check_table
from halftone.cli.output import emit, size, table, working
from halftone.foundation.wording import some

if TYPE_CHECKING:
    from pathlib import Path

    from halftone.recipes.forecast import Forecast, PlannedLayer
    from halftone.recipes.speed import Speed

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def show(
    model: str,
    recipe: str,
    budget: str,
    assignments: list[str],
    steps: int,
    memory: int | None,
    keep_as: str,
    roles: "Path | None",
    component: str | None,
    layers: bool,
    json: bool,
) -> None:
    """Print the plan of ``model`` or of its ``component``; nothing is quantized and no weight is read.

    Raises:
        ConfigError, MatchError: see :func:`halftone.artifact.load_outline`, :func:`halftone.recipes.load` and
            :func:`halftone.recipes.forecast`.
    """
    with working():
        import torch

        from halftone.cli.models import resolve
        from halftone.recipes import load

        load(recipe, budget, assignments)  # what is wrong with it is said before a model is looked for
        check_table(roles)
        located = resolve(model)
        from halftone.artifact import load_outline
        from halftone.recipes.forecast import forecast
        from halftone.recipes.speed import measure

        outline = load_outline(located, component)
        module = outline.module
        loaded = load(recipe, budget, assignments, sum(parameter.numel() for parameter in module.parameters()))
        kept = getattr(torch, keep_as)
        where = outline.network, outline.every_step, outline.is_denoiser, outline.latents
        found = forecast(module, loaded, budget, steps, memory, roles, kept, *where)
        speed = measure() if found.work and None not in found.work.values() else None
    record = {**found.plain(), "seconds": _seconds(found, speed), "others_bytes": outline.others}
    emit(record, json, lambda: _human(found, speed, layers, outline.others))


def _seconds(found: "Forecast", speed: "Speed | None") -> dict[str, Any] | None:
    """Return between which seconds each step, and all of them, are expected to take on this machine's CPU."""
    if speed is None:
        return None
    each = {name: speed.bounds(work) for name, work in found.work.items() if work}
    low, high = (sum(bounds[end] for bounds in each.values()) for end in (0, 1))
    return {"total": [low, high], "steps": {name: list(bounds) for name, bounds in each.items()}}


def _human(found: "Forecast", speed: "Speed | None", layers: bool, others: int | None) -> str:
    quantized = [layer for layer in found.layers if not layer.reason]
    lines = [
        f"{found.model}, {found.parameters:,} parameters, with {found.recipe} at budget {found.budget}: {found.title}"
    ]
    rows = [_role(role, members) for role, members in found.by_role.items()]
    lines.append(table(["role", "layers", "weight", "input", "bytes"], rows, right=[1, 4]))
    if layers:
        rows = [_layer(layer) for layer in found.layers]
        lines.append(table(["layer", "role", "shape", "weight", "input", "parts", "bytes"], rows, right=[6]))
    lines += _left_float(found)
    if found.operands:
        lines.append("Attention operands: " + ", ".join(f"{n} x {name}" for name, n in found.operands.items()))
    split = [layer.path for layer in found.layers if layer.parts]
    if split:
        lines.append(f"May be split: {len(split)} layers that read a concatenation ({some(split)})")
    inferred = sum(layer.inferred for layer in found.layers)
    lines.append(f"{len(quantized)} of {len(found.layers)} layers quantized; {inferred} roles inferred")
    return "\n".join([*lines, *_resources(found, speed, others)])


def _role(role: str, members: "list[PlannedLayer]") -> list[str]:
    marked = role + ("?" if any(layer.inferred for layer in members) else "")
    weights = dict.fromkeys(layer.weight for layer in members)
    inputs = dict.fromkeys(layer.input for layer in members)
    return [marked, str(len(members)), ", ".join(weights), ", ".join(inputs), f"{sum(m.bytes for m in members):,}"]


def _layer(layer: "PlannedLayer") -> list[str]:
    return [
        layer.path,
        layer.role + ("?" if layer.inferred else ""),
        "x".join(map(str, layer.shape)),
        layer.weight,
        layer.input,
        "+".join(map(str, layer.parts)) or "-",
        f"{layer.bytes:,}",
    ]


def _left_float(found: "Forecast") -> list[str]:
    """Return lines about what stays float, and why."""
    reasons: dict[str, list[str]] = {}
    for layer in found.layers:
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.path)
    lines = [f"Float because {reason}: {len(paths)} layers ({some(paths)})" for reason, paths in reasons.items()]
    if found.without_role:
        kinds: dict[str, list[str]] = {}
        for each in found.without_role:
            kinds.setdefault(each.kind, []).append(each.path)
        which = "; ".join(f"{kind}: {some(paths)}" for kind, paths in kinds.items())
        lines.append(f"Float without a role, {size(sum(each.bytes for each in found.without_role))}: {which}")
    return lines + [f"Note: {note}" for note in found.notes]


def _resources(found: "Forecast", speed: "Speed | None", others: int | None) -> list[str]:
    counted, memory = found.sizes, found.memory
    stored = sum(counted[purpose] for purpose in ("codes", "scales", "zero_points", "float"))
    more = f"; up to {size(found.if_split)} more if all that may be split is" if found.if_split else ""
    lines = [
        f"Size    {size(stored)} (codes {size(counted['codes'])}, scales and zero points "
        f"{size(counted['scales'] + counted['zero_points'])}, float {size(counted['float'])}){more}; "
        f"in float32 {size(counted['unquantized'])}"
    ]
    if memory:
        spilled = f", {size(memory.spilled)} of it on disk" if memory.spilled else ""
        lines.append(
            f"Memory  about {size(memory.held)} at the most, in step {memory.step}: weights {size(memory.weights)}, samples "
            f"{size(memory.samples)}, activations {size(memory.activations)}{spilled}, work {size(memory.working)}; "
            f"on top come the pipeline's other components{f', {size(others)}' if others else ''}, and the libraries"
        )
    uncounted = [name for name, work in found.work.items() if work is None]
    if uncounted:
        lines.append(f"Time    not known: nobody has counted {', '.join(uncounted)}")
    seconds = _seconds(found, speed)
    if seconds and speed:
        low, high = seconds["total"]
        dearest = sorted(seconds["steps"].items(), key=lambda item: -item[1][1])[:3]
        parts = ", ".join(f"{name} {_span(*bounds)}" for name, bounds in dearest)
        macs = sum(work.macs for work in found.work.values() if work)
        lines.append(
            f"Time    about {_span(low, high)} on this machine's CPU (an estimate: {macs:.2g} multiply-accumulates, of which it "
            f"did {speed.macs:.2g} a second just now); most of it: {parts}"
        )
    return lines


def _span(low: float, high: float) -> str:
    """Return a span of time for readers, in the unit that suits its upper end.

    >>> _span(70, 200), _span(3000, 9000), _span(4, 11), _span(5e6, 2e7)
    ('1.2 to 3.3 minutes', '0.83 to 2.5 hours', '4 to 11 seconds', '58 to 230 days')
    """
    units = ((_DAY, "days"), (_HOUR, "hours"), (_MINUTE, "minutes"))
    unit, name = next((each for each in units if high >= 1.5 * each[0]), (1, "seconds"))
    # Two digits and no more, which of a large number %g alone would write with an exponent.
    ends = (f"{float(f'{end / unit:.2g}'):g}" for end in (low, high))
    return f"{' to '.join(ends)} {name}"
