"""``halftone``: the sub-commands in one application, and what its exit codes mean.

0: done. 2: the request was wrong. 3: it ran, and an expectation was not met, or the model gave no usable numbers (NaN, constants).
130: interrupted. Modules of this room import
torch and diffusers inside their functions, so that ``halftone --help`` answers at once.
"""

import contextlib
import importlib.metadata
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from halftone.cli import bench, doctor, evaluate, export, generate, inspect, quantize, recipes, report, zoo
from halftone.foundation.allocator import keep_freed_memory
from halftone.foundation.errors import CalibrationError, HalftoneError

_WRONG_REQUEST, _NOT_MET, _INTERRUPTED = 2, 3, 130
_DEBUG = "--debug"

app = typer.Typer(
    name="halftone",
    help="Quantize diffusion models to few bits that really run in few bits, and measure what that cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (quantize, generate, evaluate, bench, inspect, export, report, doctor):
    app.command(_command.__name__.rpartition(".")[2])(_command.command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(zoo.app, name="zoo")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"halftone {importlib.metadata.version('halftone')}")
        raise typer.Exit


@app.callback(
    epilog="MODEL is a diffusers folder, a hub id, or zoo:NAME. Begin with: halftone quantize zoo:fashion-unet "
    "--recipe q-diffusion-w4a8 --budget demo -o out"
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option(_DEBUG, help="Show the traceback of an error; allowed anywhere.")] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run ``halftone`` with ``arguments`` and return its exit code; messages go to stderr."""
    debug = _DEBUG in arguments
    given = [each for each in arguments if each != _DEBUG]
    try:
        done = app(args=given, prog_name="halftone", standalone_mode=False)
    except HalftoneError as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        return _NOT_MET if isinstance(error, CalibrationError) else _WRONG_REQUEST
    except (typer.Abort, KeyboardInterrupt):
        done = _INTERRUPTED  # as newer versions of the library return by themselves
    except Exception as error:
        # Usage errors; their class lives in another module in each major version of the library.
        if not hasattr(error, "format_message"):
            raise
        if debug:
            traceback.print_exc()
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr, flush=True)
            return _WRONG_REQUEST
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "halftone"
        _complain(error.format_message(), f"Try: {path} --help")
        return int(getattr(error, "exit_code", _WRONG_REQUEST))
    if done == _INTERRUPTED:
        _complain("interrupted", *_resumption(given))
    return done if isinstance(done, int) else 0


def _complain(*lines: str) -> None:
    print("error: " + "\n".join(lines), file=sys.stderr, flush=True)


def _resumption(arguments: Sequence[str]) -> list[str]:
    """Return the line that goes on with the interrupted work; nothing for commands that are quickly repeated."""
    line = list(arguments)
    if line[:1] == ["quantize"]:
        line += [] if "--resume" in line else ["--resume"]
    elif line[:2] != ["zoo", "train"] or not _has_checkpoints(line):
        return []
    return ["Go on with:", "  " + shlex.join(["halftone", *line])]


def _has_checkpoints(line: Sequence[str]) -> bool:
    from halftone.zoo.catalog import CATALOG

    return any(entry.name in line and "work" in entry.options for entry in CATALOG)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as the commands show everything: one line, without the place in the code."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Entry point of the ``halftone`` command."""
    keep_freed_memory()
    warnings.showwarning = _show_warning
    # A parent that ignores interrupts (a script's background job) must not make a long run unstoppable by them.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # `halftone recipes | head` closed the pipe. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
