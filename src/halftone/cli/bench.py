"""``halftone bench``: time of a denoiser call, peak memory, bytes on disk, beside the float baselines."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halftone.cli.options import Dtype, Json, Model, Weights, check_dtype
from halftone.cli.output import emit, size, table, working
from halftone.foundation.errors import ConfigError

if TYPE_CHECKING:
    from halftone.evaluate.bench import Contender

RECORD = "halftone/bench.json"
_FLOATS = ("float32", "bfloat16")


def command(
    model: Model,
    against: Annotated[
        str | None,
        typer.Option(metavar="FLOAT_MODEL", help="The original, timed in float32 and bfloat16 in the same run."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", help="Engine to time: auto (the default), simulate, torch, openvino; repeatable."),
    ] = None,
    weights: Weights = "ready",
    dtype: Dtype = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Samples in one denoiser call.")] = 1,
    rounds: Annotated[int, typer.Option(min=2, help="Counted calls of each contender.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before, not counted.")] = 3,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory, each contender in a process of its own.")
    ] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the results in MODEL, for `report`.")] = True,
    seed: Annotated[int, typer.Option(help="Of the bootstrap of the intervals.")] = 0,
    json: Json = False,
) -> None:
    """Time one denoiser call of MODEL; measure its peak memory and its bytes on disk.

    All contenders take turns in one process, so that a drifting machine does not decide.

    \b
    Examples:
      halftone bench out --against zoo:fashion-unet
      halftone bench out --against original --engine torch --engine simulate --batch 8 --json
      halftone bench out --against original --dtype bfloat16
    """
    check_dtype(dtype)
    with working() as progress:
        from json import dumps

        from halftone.cli.models import doubts, is_quantized, local_artifact, open_model, resolve, use_engine
        from halftone.evaluate.bench import Subject, bench
        from halftone.foundation.files import label, write_atomically
        from halftone.report.card import write_card

        pipe = open_model(model, dtype, device, weights)
        if is_quantized(pipe):
            engines = list(dict.fromkeys(engine or ["auto"]))
            runs = {name: (model, name) for name in engines}
        else:
            if dtype != "float32":
                fix = "A float one is timed in float32 and in bfloat16."
                raise ConfigError(f"--dtype {dtype}", "a quantized MODEL", "a float one", fix)
            engines, runs = engine or [], {name: (model, name) for name in _FLOATS}
        for name in engines:  # all of them before any is timed
            for sentence in use_engine(pipe, name, batch):
                progress.say(f"note: {sentence}")
        notes = doubts(model, pipe, against, open_model(against) if against else None)
        for note in notes:
            progress.say(f"warning: {note}")
        baselines = {name: (against, name) for name in _FLOATS} if against else {}
        rows = baselines | {(f"{name} of MODEL" if name in baselines else name): each for name, each in runs.items()}
        loaded = {name: Subject(resolve(source), kind, weights, dtype) for name, (source, kind) in rows.items()}
        contenders = [_contender(name, *each, batch, device, weights, dtype) for name, each in rows.items()]
        folders = {name: folder for name, (source, _) in rows.items() if (folder := _denoiser_folder(resolve(source)))}
        found = bench(contenders, loaded if memory else {}, folders, batch, rounds, warmup, device, seed, progress)
        found["protocol"] |= {"weights": weights, "dtype": dtype}
        record = {"model": label(model), "against": label(against) if against else None, **found, "notes": notes}
        folder = local_artifact(model, pipe) if keep else None
        if folder:
            write_atomically(folder / RECORD, dumps(record, indent=1) + "\n")
            write_card(folder)
    emit(record, json, lambda: _human(model, against, record))


def _contender(name: str, source: str, kind: str, batch: int, device: str, weights: str, dtype: str) -> "Contender":
    from halftone.evaluate.bench import Contender

    def make() -> Callable[[], Any]:
        from halftone.cli.models import open_model, use_engine
        from halftone.models.denoiser import denoiser
        from halftone.models.example_inputs import example_inputs

        pipe = open_model(source, kind if kind in _FLOATS else dtype, device, weights)
        if kind not in _FLOATS:
            use_engine(pipe, kind, batch)
        module = denoiser(pipe).eval()
        args, kwargs = example_inputs(module, batch)
        return lambda: module(*args, **kwargs)

    return Contender(name, make)


def _denoiser_folder(source: str) -> Path | None:
    """Return the folder of the denoiser's files, None for a model of the hub."""
    for name in ("unet", "transformer", "prior", "decoder"):
        if (Path(source) / name).is_dir():
            return Path(source) / name
    return None


def _human(model: str, against: str | None, found: dict[str, Any]) -> str:
    how, machine = found["protocol"], found["machine"]
    lines = [
        f"{model}" + (f" against {against}" if against else ""),
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; "
        f"batch {how['batch']}, {how['rounds']} rounds on {how['device']}, weights {how['weights']}, quantized in {how['dtype']}",
    ]
    headings = ["contender", "ms a call", "10 % to 90 %", "peak memory", "disk", *(f"against {b}" for b in _FLOATS)]
    rows = []
    for row in found["rows"]:
        speed = [row["speedup"].get(baseline) for baseline in _FLOATS]
        rows.append(
            [
                row["name"],
                f"{row['median']:.2f}",
                f"{row['p10']:.2f} to {row['p90']:.2f}",
                size(row["memory"]["device"] or row["memory"]["peak"]) if row["memory"] else "-",
                size(row["disk_bytes"]) if row["disk_bytes"] else "-",
                *(f"{s['value']:.2f}x ({s['low']:.2f} to {s['high']:.2f})" if s else "-" for s in speed),
            ]
        )
    used = [n for n in range(len(headings)) if any(row[n] != "-" for row in rows)]
    lines.append(table([headings[n] for n in used], [[row[n] for n in used] for row in rows], right=[1]))
    return "\n".join(lines)
