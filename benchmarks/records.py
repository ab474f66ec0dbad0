"""What the records of all studies share: digests, the commit, and JSON that can be read and compared."""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers

from halftone.foundation.build import plain
from halftone.kernels.machine import machine
from halftone.recipes import Recipe

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# What changes a model; a title or an expectation does not.
DECISIVE = ("policy", "steps", "calibration")


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe changes a model, JSON-safe."""
    return {key: value for key, value in plain(recipe).items() if key in DECISIVE}


def recipe_digest(recipe: Recipe) -> str:
    """Return a digest of what a recipe does: two recipes with equal digests make equal models."""
    return digest_of(decisive(recipe))


def digest_of(data: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of JSON-safe data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def readable(content: dict[str, Any]) -> str:
    """Return indented JSON with every list of numbers on one line: a difference between two versions can be read."""
    text = json.dumps(finite(content), indent=1, sort_keys=True, allow_nan=False)
    return re.sub(r"\[[-\d.eE+,\s]+\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def finite(value: Any) -> Any:
    """Return ``value`` with infinite numbers as text, which JSON has no numbers for (the PSNR of equal images)."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "infinity" if value > 0 else str(value)
    return value


def circumstances(seconds: float) -> dict[str, Any]:
    """Return on what, with which code and when something that took so long was measured."""
    return {
        "machine": {**machine(), "diffusers": diffusers.__version__, "python": platform.python_version()},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def commit() -> dict[str, Any]:
    """Return the commit of the code, and whether anything but results differed from it."""
    sha = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", "src", "benchmarks", ":(exclude,glob)benchmarks/*/results/**")
    return {"sha": sha, "dirty": None if sha is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


_TURNS = "rounds"


def there(file: Path, protocol: dict[str, Any]) -> bool:
    """Return whether a row was measured with this protocol; how often it was measured does not make it another one."""
    if not file.exists():
        return False
    kept = json.loads(file.read_text(encoding="utf-8"))["protocol"]
    now = json.loads(json.dumps(protocol))  # which has no tuples
    return bool({**kept, _TURNS: 0} == {**now, _TURNS: 0})


def rows_of(folder: Path, sections: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return a study's rows by section and name; a section without rows is not there."""
    return {
        section: {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
        for section in sections
        if (files := sorted((folder / section).glob("*.json")))
    }
