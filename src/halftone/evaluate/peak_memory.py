"""``python -m halftone.evaluate.peak_memory FOLDER ENGINE``: the peak memory of three denoiser calls, as one JSON line.

ENGINE is ``float32`` or ``bfloat16`` (the model as it is, in that dtype) or the name of an engine. Run through
:func:`halftone.evaluate.bench.peak_memory`.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import psutil
import torch

from halftone.artifact import load_pipeline
from halftone.engines import require, set_engine
from halftone.foundation.errors import HalftoneError
from halftone.models.denoiser import denoiser
from halftone.models.example_inputs import example_inputs

_CALLS = 3
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(
    folder: str, engine: str, batch: int, device: str, weights: str = "ready", dtype: str = "float32"
) -> dict[str, int | None]:
    """Load, call, and return ``peak`` and ``libraries`` in bytes, and ``device`` (None on a CPU)."""
    _import_classes(Path(folder))
    libraries = psutil.Process().memory_info().rss
    _forget_peak()
    if engine not in _DTYPES:
        require(engine, weight_only=True)
    pipe = load_pipeline(folder, weights=weights, dtype=_DTYPES.get(engine, getattr(torch, dtype))).to(device)
    model = denoiser(pipe)
    if engine not in _DTYPES:
        set_engine(model, engine)
    args, kwargs = example_inputs(model.eval(), batch)
    with torch.inference_mode():
        for _ in range(_CALLS):
            model(*args, **kwargs)
    allocated = torch.cuda.max_memory_allocated() if device.startswith("cuda") else None
    return {"peak": max(0, _peak() - libraries), "libraries": libraries, "device": allocated}


def _import_classes(folder: Path) -> None:
    """Import what the pipeline's components are made of: libraries load much of themselves on first use."""
    import diffusers
    import transformers

    index = folder / "model_index.json"
    names = json.loads(index.read_bytes()) if index.is_file() else {}
    homes = {"diffusers": diffusers, "transformers": transformers}
    for library, name in [("diffusers", names.get("_class_name")), *(v for v in names.values() if isinstance(v, list))]:
        if library in homes and isinstance(name, str):
            getattr(homes[library], name, None)


def _forget_peak() -> None:
    """Start the peak anew, so that what importing took for a moment does not count (Linux; elsewhere it does)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """Return this process's greatest resident size in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            # Not ru_maxrss: on Linux a child inherits that from the process that started it.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # absent on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="peak_memory", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("engine")
    parser.add_argument("--weights", default="ready")
    parser.add_argument("--dtype", default="float32", help="of what stays float, where ENGINE is none of the two")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    try:
        how = chosen.batch, chosen.device, chosen.weights, chosen.dtype
        print(json.dumps(measure(chosen.folder, chosen.engine, *how)))
    except HalftoneError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
