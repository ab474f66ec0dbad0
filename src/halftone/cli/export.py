"""``halftone export``: a quantized denoiser in the form that an engine for whole networks runs."""

from pathlib import Path
from typing import Annotated

import typer

from halftone.cli.options import Json, Model, Overwrite
from halftone.cli.output import emit, size, working
from halftone.foundation.errors import ConfigError, suggest


def command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    engine: Annotated[str, typer.Option(help="Whose form: openvino.")] = "openvino",
    batch: Annotated[
        int, typer.Option(min=1, help="Samples in a call; U-Nets are exported for any number and image size.")
    ] = 1,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write MODEL's quantized denoiser as an engine runs it, with the artifact's own codes, scales and zero points.

    Of OpenVINO that is its own format, which any program of OpenVINO's runs, with 4-bit weights in 4 bits. In Python,
    halftone.set_engine(pipe.unet, "openvino", folder=DIR) takes it in place of exporting.

    \b
    Examples:
      halftone export out -o out-openvino
      halftone export out --engine openvino --batch 2 -o out-openvino --json
    """
    with working() as progress:
        from halftone.cli.models import is_quantized, open_model
        from halftone.engines import session, set_engine
        from halftone.engines.select import network_engines
        from halftone.evaluate.bench import disk_bytes
        from halftone.foundation.files import check_output
        from halftone.models.denoiser import denoiser
        from halftone.models.example_inputs import example_inputs

        check_output(output, overwrite)
        if engine not in network_engines():
            expected = "an engine that runs whole networks"
            raise ConfigError("--engine", expected, f"'{engine}'", suggest(engine, network_engines()))
        pipe = open_model(model)
        if not is_quantized(pipe):
            raise ConfigError(
                model, "a quantized model", "a float one", "Quantize it first: halftone quantize MODEL -o DIR."
            )
        network = denoiser(pipe).eval()
        set_engine(network, engine)
        runs = session(network)
        assert runs is not None
        progress.say(f"exporting {type(network).__name__}")
        runs.save(output, *example_inputs(network, batch), overwrite)
        facts = {
            "output": str(output),
            "engine": engine,
            "network": type(network).__name__,
            "bytes": disk_bytes(output),
        }
    emit(facts, json, lambda: f"{output}: {facts['network']} for {engine}, {size(disk_bytes(output))}")
