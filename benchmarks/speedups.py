"""``python -m benchmarks.speedups``: what kept memory and native loops are worth, in processes that take turns.

Each process draws images with the integer kernels: as Halftone is with neither, with the C library keeping freed memory
(:func:`halftone.foundation.allocator.keep_freed_memory`), with the compiled loops (:mod:`halftone.kernels.native`), and with both.
Printed is how many times the images a second of the first, round by round, and the median.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from halftone.kernels.native.build import SWITCH

_BATCHES = (1, 16, 64)
_WAYS = ("neither", "memory", "loops", "both")


def _images_a_second(folder: str, way: str) -> list[float]:
    import torch

    from halftone.artifact import load_pipeline
    from halftone.foundation.allocator import keep_freed_memory
    from halftone.kernels.native.build import why_no_loops
    from halftone.models.denoiser import denoiser

    if way in ("memory", "both") and not keep_freed_memory():
        raise SystemExit("this C library has no mallopt")
    if way in ("loops", "both") and why_no_loops():
        raise SystemExit(str(why_no_loops()))
    network, found = denoiser(load_pipeline(folder)), []
    for batch in _BATCHES:
        x, calls = torch.randn(batch, 1, 32, 32), max(3, 128 // batch)
        with torch.inference_mode():
            network(x, 500), network(x, 500)
            began = time.perf_counter()
            for _ in range(calls):
                network(x, 500)
        found.append(calls * batch / (time.perf_counter() - began))
    return found


def _measured(folder: str, way: str) -> list[float]:
    """Return the images a second by batch size of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.speedups", "--one", folder, way]
    environment = {**os.environ, SWITCH: "1" if way in ("loops", "both") else "0"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return [float(value) for value in done.stdout.split()]


def _shown(ratios: list[float]) -> str:
    return ", ".join(f"batch {batch} {ratio:.2f}x" for batch, ratio in zip(_BATCHES, ratios, strict=True))


def main() -> None:
    """Quantize once, then measure rounds of processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speedups", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(*_images_a_second(*chosen.one))
        return
    with tempfile.TemporaryDirectory() as place:
        out = str(Path(place) / "model")
        quantize = ["halftone", "quantize", "zoo:fashion-unet", "--recipe", "rtn-w4a8", "--budget", "demo", "-o", out]
        subprocess.run([sys.executable, "-m", *quantize], check=True)
        rounds: dict[str, list[list[float]]] = {way: [] for way in _WAYS[1:]}
        for number in range(chosen.rounds):
            base = _measured(out, _WAYS[0])
            for way, seen in rounds.items():
                seen.append([b / a for a, b in zip(base, _measured(out, way), strict=True)])
                print(f"round {number + 1}, {way}: {_shown(seen[-1])}", flush=True)
    for way, seen in rounds.items():
        print(f"median, {way}: {_shown([statistics.median(each) for each in zip(*seen, strict=True)])}")


if __name__ == "__main__":
    main()
