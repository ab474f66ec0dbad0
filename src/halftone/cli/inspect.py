"""``halftone inspect``: what each layer became, and why."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.options import Assignments, Engine, Json, KeepAs, Model, Roles, Weights, byte_count, check_kept
from halftone.cli.output import emit, size, table, working
from halftone.cli.plan import show
from halftone.foundation.errors import ConfigError
from halftone.foundation.wording import some

if TYPE_CHECKING:
    from halftone.evaluate.inspection import Inspection, LayerFacts

RECORD = "halftone/inspection.json"
_RECIPE = "q-diffusion-w4a8"  # of a plan


def command(
    model: Model,
    engine: Engine = None,
    weights: Weights = "ready",
    agreement: Annotated[
        bool, typer.Option("--agreement/--no-agreement", help="Run every layer's kernel beside the definition.")
    ] = True,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep the results in MODEL, for `report` (of the default engine).")
    ] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what a recipe would make of float MODEL, before any work.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help=f"Of the plan; {_RECIPE} where none is named.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Of the plan: demo, fast (the default) or paper.")] = None,
    assignments: Assignments = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the plan: sampling steps of the calibration, 50.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of the plan: bound of the activations held in memory.")
    ] = None,
    keep_as: KeepAs = "float32",
    roles: Roles = None,
    component: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another part of the pipeline than the denoiser, such as vae.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Of the plan: every layer, not only every role.")] = False,
    json: Json = False,
) -> None:
    """Show every layer: role, formats, kernel and why faster ones were refused, arithmetic, bytes, agreement.

    A role marked with ? was inferred from structure. Float models are shown too: what a recipe would meet.

    With --plan, nothing is quantized and no weight is read: MODEL may also be a denoiser's folder or its config.json. It shows what
    each role would become, the final size, and the memory and time to expect from `halftone quantize`.

    \b
    Examples:
      halftone inspect out
      halftone inspect out --engine simulate --json
      halftone inspect zoo:fashion-unet
      halftone inspect out --component vae
      halftone inspect --plan zoo:fashion-unet --recipe gptq-w4a8 --budget demo
      halftone inspect --plan FOLDER --component vae --recipe rtn-w8a8
      halftone inspect --plan unet/config.json --recipe rtn-w8a8 --layers
    """
    of_plan = {
        **{"--recipe": recipe, "--budget": budget, "--set": assignments, "--steps": steps, "--memory": memory},
        **{"--keep-as": None if keep_as == "float32" else keep_as, "--roles": roles, "--layers": layers or None},
    }
    if plan:
        of_engine = {"--engine": engine, "--device": None if device == "cpu" else device}
        _refuse(of_engine, "no such option beside --plan", "The plan is of no engine, and its time is that of the CPU.")
        show(
            model, recipe or _RECIPE, budget or "fast", assignments or [], steps or 50,
            byte_count(memory) if memory else None, check_kept(keep_as), roles, component, layers, json,
        )  # fmt: skip
        return
    _refuse(of_plan, "--plan beside it", "Without --plan, inspect shows a model as it is.")
    found, record = _inspected(model, component, engine, agreement, keep, device, weights)
    emit(record, json, lambda: "\n".join([_human(found), *_components(record["components"])]))


def _inspected(
    model: str, component: str | None, engine: str | None, agreement: bool, keep: bool, device: str, weights: str
) -> tuple["Inspection", dict[str, Any]]:
    """Return what one component's layers are, and the record of it together with the sizes of all components, JSON-safe."""
    with working():
        from json import dumps

        from halftone.artifact import component_sizes
        from halftone.artifact.accounting import held
        from halftone.cli.models import local_artifact, open_model, use_engine
        from halftone.engines import running
        from halftone.evaluate.inspection import inspect_model
        from halftone.foundation.files import write_atomically
        from halftone.models.component import component as find

        pipe = open_model(model, device=device, weights=weights)
        part = find(pipe, component)
        use_engine(pipe, engine)
        found = inspect_model(pipe if component is None else part.owner, agreement)
        parts = component_sizes(pipe)
        for name, each in parts.items():
            network = pipe.components[name]
            each["held"] = None if running(network) else held(network)  # whose graph holds weights of its own
        record = {**found.plain(), "components": parts}
        folder = local_artifact(model, pipe) if keep and engine is None and component is None else None
        if folder:
            write_atomically(folder / RECORD, dumps(record, indent=1) + "\n")
        return found, record


def _refuse(options: dict[str, Any], expected: str, fix: str) -> None:
    """Raise a ConfigError at the first of ``options`` that was given."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(option, expected, str(value), fix)


def _human(found: "Inspection") -> str:
    headings = ["layer", "role", "weight", "input", "segments", "kernel", "arithmetic", "bytes", "difference"]
    totals, counted = found.totals, found.sizes
    made = f", made with {found.recipe}" if found.recipe else ", float"
    lines = [f"{found.model}{made}", table(headings, [_row(layer) for layer in found.layers], right=[7])]
    refusals: dict[str, list[str]] = {}
    for layer in found.layers:
        for kernel, reason in layer.refused.items():
            refusals.setdefault(f"{kernel}: {reason}", []).append(layer.path)
    if refusals:
        lines.append("Refused by faster kernels:")
        lines += [f"  {reason} ({some(paths)})" for reason, paths in refusals.items()]
    lines += _operands(found)
    lines += _left_float(found)
    kernels = ", ".join(f"{count} on {name}" for name, count in totals["by_kernel"].items())
    kernels += f"; weights {found.weights}" if found.weights else ""
    lines.append(f"{totals['layers']} layers: {kernels}; {totals['inferred_roles']} roles inferred")
    stored = counted["codes"] + counted["scales"] + counted["zero_points"] + counted["float"]
    lines.append(
        f"{size(stored)} (codes {size(counted['codes'])}, scales and zero points "
        f"{size(counted['scales'] + counted['zero_points'])}, float {size(counted['float'])}); "
        f"in float32 {size(counted['unquantized'])}"
    )
    if totals["largest_difference"] is not None:
        verdict = "all within their kernels' tolerance"
        if totals["disagreeing"]:
            verdict = f"BEYOND the tolerance: {some(totals['disagreeing'])}"
        lines.append(f"Largest difference from simulate: {totals['largest_difference']:.1e}; {verdict}")
    return "\n".join(lines)


def _operands(found: "Inspection") -> list[str]:
    """Return a line for each kernel of attention, and why others were refused."""
    lines = []
    for kernel in sorted({each.kernel for each in found.operands}):
        own = [each for each in found.operands if each.kernel == kernel]
        kinds, places = sorted({f"{each.site} {each.format}" for each in own}), sorted({each.path for each in own})
        masked = ", simulated where a call has a mask" if own[0].arithmetic != "simulated" else ""
        places_said = f"{len(places)} attention{'s' * (len(places) != 1)}"
        lines.append(f"Attention operands, {own[0].arithmetic} in {places_said} ({kernel}{masked}): {', '.join(kinds)}")
        reasons = sorted({f"  {name}: {reason}" for each in own for name, reason in each.refused.items()})
        lines += ["Refused by faster kernels of attention:", *reasons] if reasons else []
    return lines


def _components(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of a pipeline's networks; nothing for one that has a denoiser alone."""
    if len(parts) < 2:
        return []
    rows = [
        [
            name,
            each["class"],
            f"{each['quantized']} of {each['layers']}",
            size(each["bytes"]),
            "-" if each["held"] is None else size(each["held"]),
            size(each["unquantized"]),
        ]
        for name, each in parts.items()
    ]
    sums = (sum(each[key] or 0 for each in parts.values()) for key in ("bytes", "held", "unquantized"))
    stored, kept, before = map(size, sums)
    unknown = any(each["held"] is None for each in parts.values())
    rows.append(["all", "", "", stored, "-" if unknown else kept, before])
    headings = ["component", "class", "layers quantized", "stored", "in memory", "in float32"]
    return ["Components:", table(headings, rows, right=[2, 3, 4, 5])]


def _left_float(found: "Inspection") -> list[str]:
    """Return lines about what no rule reached, and what a rule reached in vain."""
    lines = [f"Note: {note}" for note in found.notes]
    lines += [f"Float beside it: {each.path} ({each.kind}), {size(each.bytes)}" for each in found.float_denoisers]
    if found.without_role:
        kinds: dict[str, list[str]] = {}
        for each in found.without_role:
            kinds.setdefault(each.kind, []).append(f"{each.path} {'x'.join(map(str, each.shape))}")
        lines.append(f"Float without a role, {size(sum(each.bytes for each in found.without_role))}:")
        lines += [f"  {kind}: {some(paths)}" for kind, paths in kinds.items()]
    return lines


def _row(layer: "LayerFacts") -> list[str]:
    measured = "-" if layer.difference is None else f"{layer.difference:.0e} of {layer.tolerance:.0e}"
    return [
        layer.path,
        layer.role + ("?" if layer.inferred else ""),
        layer.weight,
        layer.input,
        "+".join(map(str, layer.segments)) or "-",
        layer.kernel or "-",
        layer.arithmetic if layer.quantized else "not quantized",
        f"{layer.bytes:,}",
        measured,
    ]
