"""``halftone report``: one HTML page about a quantized model."""

from pathlib import Path
from typing import Annotated

import typer

from halftone.cli.options import Json, Overwrite
from halftone.cli.output import emit, working
from halftone.foundation.errors import ConfigError
from halftone.foundation.files import check_output_file


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `halftone quantize` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page about a quantized model.

    It shows what `quantize`, and before it `evaluate` and `bench`, left in DIR/halftone.

    \b
    Example:
      halftone report out -o out.html
    """
    if not folder.is_dir():
        raise ConfigError(str(folder), "a folder that `halftone quantize` wrote", "none")
    check_output_file(output, overwrite)
    with working():
        from halftone.report.page import write_report

        write_report(folder, output)
    emit({"output": str(output)}, json, lambda: f"Report: {output}")
