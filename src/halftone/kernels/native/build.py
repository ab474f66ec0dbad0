"""Compile the C++ loops once for this machine and load them."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from halftone.foundation.files import private_cache

SWITCH = "HALFTONE_NATIVE"
_SOURCES = ("codes.cpp", "product.cpp", "attention.cpp")
_HEADERS = ("arithmetic.h",)
# Contraction would fuse a product and a sum, which rounds once where the definition rounds twice. Without "finite" and "no signed
# zeros" a clamp is a branch, and the loops around it ten times slower; NaN becomes code 0 here as it does in PyTorch's operators.
_EXACT = ("-ffp-contract=off",)
_FAST = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffinite-math-only", "-fno-signed-zeros")
_FLAGS = ("-std=c++17", "-fPIC", *_FAST, *_EXACT)
_TUNED = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
_SECONDS = 120


class Unavailable(Exception):
    """Why there are no native loops here, in words."""


@cache
def load() -> ctypes.CDLL | str:
    """Return the loaded library, compiling it where no earlier process has, or the reason why it is not to be had."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"switched off by {SWITCH}=0"
    try:
        return _load()
    except Unavailable as reason:
        return str(reason)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"


def why_no_loops() -> str | None:
    """Return why the native loops are not to be had, or None where they are; compiles them where nobody has."""
    found = load()
    return found if isinstance(found, str) else None


def one_thread() -> bool:
    """Return whether there are native loops, and they run on one thread alone, having been compiled without OpenMP."""
    found = load()
    return not isinstance(found, str) and not found.halftone_parallel()


def _load() -> ctypes.CDLL:
    compiler = _compiler()
    sources = {name: resources.files(__package__).joinpath(name).read_bytes() for name in (*_SOURCES, *_HEADERS)}
    key = _digest(b"\0".join([*sources.values(), *(part.encode() for part in _identity(compiler))]))
    folder = private_cache("native")
    place = folder or Path(tempfile.mkdtemp(prefix="halftone-native-"))
    try:
        return ctypes.CDLL(str(_whole(place, key) or _compile(compiler, sources, place, key)))
    finally:
        if folder is None:
            # Loaded, it stays so without its file.
            shutil.rmtree(place, ignore_errors=True)


def _whole(place: Path, key: str) -> Path | None:
    """Return the library for ``key`` that an earlier process has left, if it is what its name says; damaged ones go."""
    for file in place.glob(f"codes-{key}-*.so"):
        if file.name == f"codes-{key}-{_digest(file.read_bytes())}.so":
            return file
        # To load half a library can end the process.
        file.unlink(missing_ok=True)
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _compiler() -> list[str]:
    """Return the command of a C++ compiler: ``$CXX``, which may have arguments, or the first of the usual names."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]:
        found = shutil.which(command[0])
        if found:
            return [found, *command[1:]]
    raise Unavailable(f"no C++ compiler ({' '.join(wanted) or 'c++, g++ or clang++'}) on the path")


def _identity(compiler: list[str]) -> list[str]:
    """Return what a compiled library depends on beside its source."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS).stdout
    return [*compiler, version, *_FLAGS, *(flag for flags in _TUNED for flag in flags), _processor()]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    # What a library compiled for one processor may use and another may lack; cache folders travel with home folders.
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _compile(compiler: list[str], sources: dict[str, bytes], place: Path, key: str) -> Path:
    """Return the library, compiled; raises :class:`Unavailable` with what the compiler said."""
    said = ""
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        for name, content in sources.items():
            (Path(scratch) / name).write_bytes(content)
        linked = Path(scratch) / "codes.so"
        for threads in (("-fopenmp",), ()):
            for tuned in _TUNED:
                files = [str(Path(scratch) / name) for name in _SOURCES]
                objects = [f"{file}.o" for file in files]
                flags = (*_FLAGS, *tuned, *threads)
                built = next(
                    (
                        wrong
                        for file, made in zip(files, objects, strict=True)
                        if (wrong := _run(*compiler, *flags, "-c", file, "-o", made))
                    ),
                    None,
                )
                # Not linked with an OpenMP of the compiler's: PyTorch's own is in the process, and two keep two sets of threads.
                linking = built or _run(*compiler, "-shared", *objects, "-o", str(linked))
                if linking is None and (reason := _refused(linked)) is None:
                    return linked.replace(place / f"codes-{key}-{_digest(linked.read_bytes())}.so")
                said = linking or reason or said
    raise Unavailable(f"{' '.join(compiler)} cannot build the native loops: {said}")


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[0]


def _refused(library: Path) -> str | None:
    """Return why the library cannot be loaded, such as functions of OpenMP that PyTorch here does not have; None if it can."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None
