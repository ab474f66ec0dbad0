"""``halftone quantize``: from a trained pipeline to a quantized one, in one resumable command."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.options import (
    Assignments,
    Guidance,
    Json,
    KeepAs,
    Model,
    Overwrite,
    Prompts,
    Roles,
    Seed,
    Steps,
    byte_count,
    check_kept,
    check_table,
)
from halftone.cli.output import emit, size, working
from halftone.foundation.errors import ConfigError, OutputError
from halftone.foundation.prompt_file import read_prompts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from halftone.foundation.progress import Progress

_FINISHED = "finished.json"
_IN_PYTHON = (
    "In Python: halftone.quantize(pipe, RECIPE, each={'prompt': [...], 'image': [...]}), and once more with "
    "component='controlnet' where there is one."
)
_LABELS = 64  # that the calibration of a class-conditional model takes in turn


def command(
    model: Model,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="A recipe's name (`halftone recipes`) or a .yaml file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; any diffusers program loads it.")],
    budget: Annotated[str, typer.Option(help="How much work: demo, fast or paper.")] = "fast",
    assignments: Assignments = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RECIPE", help="Another part of the pipeline and its recipe: --also vae=rtn-w8a8."),
    ] = None,
    prompts: Prompts = None,
    guidance: Guidance = None,
    steps: Steps = 50,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run left.")] = False,
    overwrite: Overwrite = False,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bound of the activations held in memory, such as 2GB.")
    ] = None,
    keep_as: KeepAs = "float32",
    roles: Roles = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="What the card says MODEL is, where MODEL is a folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Quantize MODEL and write a diffusers folder.

    Unfinished work is kept in OUTPUT.work until the end: a run that was killed goes on with --resume and gives the very
    same bytes.

    \b
    Examples:
      halftone quantize zoo:fashion-unet --recipe q-diffusion-w4a8 --budget demo -o out
      halftone quantize my-model --recipe gptq-w4a32 --prompts captions.txt --steps 25 -o out --memory 4GB
      halftone quantize my-model --recipe q-diffusion-w4a8 --also vae=rtn-w8a8 --prompts captions.txt --guidance 5 -o out
      halftone quantize my-model --recipe mine.yaml --set calibration.samples=256 -o out --resume
    """
    from halftone.artifact.pipeline import check_place
    from halftone.report.card import checked_base_model

    if base_model is not None:
        checked_base_model(base_model)
    bound, kept = byte_count(memory) if memory else None, check_kept(keep_as)
    work = output.parent / (output.resolve().name + ".work")
    with working() as progress:
        done = _finished(output, work) if resume else None
        if done is None:
            check_place(output, overwrite)
            lines = read_prompts(prompts) if prompts else None
            given = _guided(recipe, budget, list(assignments or []), guidance)
            _check_request(recipe, budget, given, roles, work, resume)
            others = _others(also or [], budget)
            try:
                done = _quantize(
                    model, recipe, others, output, work, device, lines, guidance, progress, overwrite, base_model,
                    steps=steps, seed=seed, budget=budget, overrides=given,
                    memory=bound, keep=kept, roles=roles, resume=resume,
                )  # fmt: skip
            except Exception as error:
                raise _explained(error, output, work) from error
        shutil.rmtree(work, ignore_errors=True)
    emit({"output": str(output), **done}, json, lambda: _human(model, output, done))


def _check_request(
    recipe: str, budget: str, assignments: list[str], roles: Path | None, work: Path, resume: bool
) -> None:
    """Refuse what can be refused before a model is loaded."""
    from halftone.recipes import load

    load(recipe, budget, assignments)
    check_table(roles)
    if (work / "claim.json").exists() and not resume:
        raise ConfigError(str(work), "no unfinished work", "some", "Go on with --resume, or delete the folder.")


def _guided(recipe: str, budget: str, assignments: list[str], guidance: float | None) -> list[str]:
    """Return the assignments with one more where the calibration's guidance is named."""
    if guidance is None:
        return assignments
    from json import dumps

    from halftone.recipes import load

    arguments = load(recipe, budget, assignments).calibration.arguments | {"guidance_scale": guidance}
    return [*assignments, f"calibration.arguments={dumps(arguments)}"]


def _others(also: list[str], budget: str) -> dict[str, str]:
    """Return the recipe of each further component, all of which load."""
    from halftone.recipes import load

    found: dict[str, str] = {}
    for each in also:
        name, _, recipe = each.partition("=")
        if not name or not recipe or name in found:
            raise ConfigError("--also", "NAME=RECIPE, each name once", f"'{each}'", "Such as --also vae=rtn-w8a8.")
        load(recipe, budget)
        found[name] = recipe
    return found


def _quantize(
    model: str,
    recipe: str,
    others: dict[str, str],
    output: Path,
    work: Path,
    device: str,
    prompts: list[str] | None,
    guidance: float | None,
    progress: "Progress",
    overwrite: bool,
    base_model: str | None,
    **how: Any,
) -> dict[str, Any]:
    """Do the work, write the folder, and return the facts about it."""
    from json import dumps

    import torch

    from halftone.api import quantize
    from halftone.artifact import save_pipeline
    from halftone.cli.models import open_model, options, refuse_pictures
    from halftone.cli.recipes import resolved
    from halftone.foundation.files import label, text_digest, write_atomically
    from halftone.models.component import component
    from halftone.recipes import load
    from halftone.report.pieces import QUANTIZED, RUN

    how["keep"] = getattr(torch, how["keep"])
    pipe = open_model(model, device=device)
    refuse_pictures(pipe, model, _IN_PYTHON)
    options(pipe, guidance_scale=guidance)
    for name in others:
        if component(pipe, name) == component(pipe):
            raise ConfigError(
                "--also", "another component than the denoiser", f"'{name}'", "That is what --recipe is for."
            )
    each = _calibrated_on(pipe, prompts, progress)
    progress.say(f"quantizing {model} with {recipe}, budget {how['budget']}:")
    for line in resolved(load(recipe, how["budget"], how["overrides"], component(pipe).parameters))[1].splitlines():
        progress.say(f"  {line}")
    result = quantize(pipe, recipe, each=each, work=work, progress=progress, later=others, **how)
    report = {"model": label(model), **({"base_model": base_model} if base_model else {}), **result.report}
    times = {"seconds": report.pop("seconds"), "device": device}
    for name, its in others.items():
        # After the denoiser, so that it is calibrated on what the quantized one makes.
        progress.say(f"quantizing {name} with {its}, budget {how['budget']}")
        place = work / "also" / name
        given = _guided(its, how["budget"], [], guidance)
        changed: dict[str, Any] = {"overrides": given, "roles": None, "resume": how["resume"] and place.exists()}
        done = quantize(pipe, its, each=each, component=name, work=place, progress=progress, **{**how, **changed})
        times["seconds"] |= {f"{name}: {step}": spent for step, spent in done.report["seconds"].items()}
        report.setdefault("also", {})[name] = {key: value for key, value in done.report.items() if key != "seconds"}
    kept = dumps(report, indent=1) + "\n"
    # So that a run killed between here and the end is seen to be finished.
    write_atomically(work / _FINISHED, dumps({"report": text_digest(kept)}))
    for stale in output.resolve().parent.glob(f".{output.resolve().name}.partial-*") if how["resume"] else []:
        shutil.rmtree(stale, ignore_errors=True)
    save_pipeline(result.pipe, output, overwrite, {QUANTIZED: kept, RUN: dumps(times, indent=1) + "\n"})
    return _written(result.pipe, output, report, times)


def _calibrated_on(
    pipe: "DiffusionPipeline", prompts: list[str] | None, progress: "Progress"
) -> dict[str, list[Any]] | None:
    """Return the pipeline arguments with one value a trajectory: prompts (the user's, the model's or ours) or labels."""
    from halftone.calibrate.conditions import prompts_of
    from halftone.cli.models import conditions, cut_off, takes

    if prompts is None and takes(pipe, "prompt"):
        prompts, own = prompts_of(pipe)
        said = f"calibrating on the {len(prompts)} prompts that come with {'the model' if own else 'Halftone'}"
        progress.say(f"note: {said}; --prompts FILE names those you will use")
    for note in cut_off(pipe, prompts):
        progress.say(f"note: {note}")
    return conditions(pipe, len(prompts) if prompts else _LABELS, prompts) or None


def _finished(output: Path, work: Path) -> dict[str, Any] | None:
    """Return the facts of a run that was stopped after it had written its output, None for any other."""
    from json import loads

    from halftone.foundation.files import text_digest
    from halftone.report.pieces import QUANTIZED, RUN

    if not (work / _FINISHED).is_file() or not (output / QUANTIZED).is_file():
        return None
    text = (output / QUANTIZED).read_text(encoding="utf-8")
    if loads((work / _FINISHED).read_text())["report"] != text_digest(text):
        return None
    from halftone.cli.models import open_model

    return _written(open_model(str(output)), output, loads(text), loads((output / RUN).read_text()))


def _explained(error: Exception, output: Path, work: Path) -> Exception:
    """Return ``error``, or what to tell the user where it means a full disk, with how to go on."""
    from halftone.foundation.files import write_failure

    failure = error if isinstance(error, OutputError) else write_failure(error, output)
    if failure is None or not work.is_dir():
        return failure or error
    fix = f"{failure.fix} Finished work is kept in {work}: go on with the same command and --resume."
    return OutputError(failure.where, failure.expected, failure.got, fix.strip())


def _written(pipe: "DiffusionPipeline", output: Path, report: dict[str, Any], times: dict[str, Any]) -> dict[str, Any]:
    """Add the card to a folder that is written, and return the facts about it."""
    from collections import Counter

    from halftone.artifact import component_sizes, sizes
    from halftone.models.denoiser import named_denoiser
    from halftone.nn.layers import quantized_layers
    from halftone.report.card import write_card

    write_card(output)
    name, module = named_denoiser(pipe)
    chosen = [layer.choice() for _, layer in quantized_layers(module)]
    return {
        "sizes": sizes(module, output / name),
        "components": component_sizes(pipe),
        "kernels": dict(Counter(f"{choice.name} ({choice.kernel.arithmetic})" for choice in chosen)),
        "kept_float": sum(facts["kept"] for facts in report["layers"].values()),
        "seconds": times["seconds"],
        "report": report,
    }


def _human(model: str, output: Path, done: dict[str, Any]) -> str:
    counted, kernels = done["sizes"], done["kernels"]
    share = 100 * counted["file"] / counted["unquantized"]
    layers = [f"{count} on {name}" for name, count in kernels.items()]
    layers += [f"{done['kept_float']} kept float"] if done["kept_float"] else []
    steps = [f"{name} {seconds:.1f} s" for name, seconds in done["seconds"].items()]
    # The whole pipeline, so that it is seen what else there is to make smaller (--also).
    several = done["components"] if len(done["components"]) > 1 else {}
    parts = [
        f"  {name:<12} {size(each['unquantized'])} in float32 -> {size(each['bytes'])} stored, "
        f"{each['quantized']} of {each['layers']} layers quantized"
        for name, each in several.items()
    ]
    return "\n".join(
        [
            f"{output}: {done['report']['recipe']['title']}",
            f"  size    {size(counted['unquantized'])} in float32 -> {size(counted['file'])} on disk ({share:.0f} %)",
            f"  layers  {', '.join(layers)}",
            *parts,
            f"  time    {', '.join(steps)}",
            "Next:",
            f"  halftone inspect {output}",
            f"  halftone evaluate {output} --against {model}",
            f"  halftone bench {output} --against {model}",
            f"  halftone report {output} -o {output.name}.html",
        ]
    )
