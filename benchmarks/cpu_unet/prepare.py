"""``python -m benchmarks.cpu_unet.prepare '{...}'``: make one thing for the cache in a process whose memory goes with it.

Makes: ``model`` (the untrained pipeline), ``noise`` (inputs), ``recorded`` (inputs of a model's sampling), ``road`` (what a road
loads), ``profile`` and ``levers`` (of a contender; nothing is written). The answer is one JSON line.
"""

import importlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cpu_unet.worker import private_output, told

FACTS = "facts.json"


def make(spec: dict[str, Any]) -> dict[str, Any]:
    """Make what ``spec`` asks for, wholly or not at all, and return facts."""
    target = Path(spec["target"])
    target.parent.mkdir(parents=True, exist_ok=True)
    if spec["make"] == "road":
        return _road(spec, target)
    if spec["make"] == "profile":
        from benchmarks.cpu_unet.profiling import profiled

        return profiled(spec)
    if spec["make"] == "levers":
        from benchmarks.cpu_unet.levers import levers

        return levers(spec)
    from benchmarks.cpu_unet import models

    if spec["make"] == "model":
        models.make_sd15(target, spec.get("unet"))
    elif spec["make"] == "noise":
        models.noise(Path(spec["model"]), spec["pixels"], spec["batch"], spec["calls"]).save(target)
    else:
        models.recorded(Path(spec["model"]), spec["evaluation"]).save(target)
    return {}


def _road(spec: dict[str, Any], target: Path) -> dict[str, Any]:
    road: Any = importlib.import_module(f"benchmarks.cpu_unet.roads.{spec['road']}")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    began = time.monotonic()
    facts = road.prepare(Path(spec["model"]), partial / "unet", Path(spec["calibration"]), **spec["options"])
    facts = {**facts, "prepare_seconds": round(time.monotonic() - began, 1)}
    (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return facts


def main() -> int:
    """Make it and say so."""
    answers = private_output()
    try:
        found = make(json.loads(sys.argv[1]))
    except Exception as error:  # whatever a library raises is an answer: the row says so
        import traceback

        traceback.print_exc()
        answers.write(json.dumps({"error": told(error)}) + "\n")
        return 1
    answers.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
