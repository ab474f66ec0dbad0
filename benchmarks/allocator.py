"""``python -m benchmarks.allocator``: what it is worth to keep freed memory, in processes that alternate.

Each process draws images with the integer kernels, once with the C library as it is and once with
:func:`halftone.foundation.allocator.keep_freed_memory`; the ratio of each pair of processes is printed, and their median.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_BATCHES = (1, 16, 64)


def _images_a_second(folder: str, kept: bool) -> list[float]:
    import torch

    from halftone.artifact import load_pipeline
    from halftone.foundation.allocator import keep_freed_memory
    from halftone.models.denoiser import denoiser

    if kept and not keep_freed_memory():
        raise SystemExit("this C library has no mallopt")
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


def main() -> None:
    """Quantize once, then measure pairs of processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocator", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "HOW"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(*_images_a_second(chosen.one[0], chosen.one[1] == "kept"))
        return
    with tempfile.TemporaryDirectory() as place:
        out = str(Path(place) / "model")
        quantize = ["halftone", "quantize", "zoo:fashion-unet", "--recipe", "gptq-w4a8", "--budget", "demo", "-o", out]
        subprocess.run([sys.executable, "-m", *quantize], check=True)
        ratios: list[list[float]] = []
        for _ in range(chosen.pairs):
            plain, kept = (
                [
                    float(value)
                    for value in subprocess.run(
                        [sys.executable, "-m", "benchmarks.allocator", "--one", out, how],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout.split()
                ]
                for how in ("plain", "kept")
            )
            ratios.append([b / a for a, b in zip(plain, kept, strict=True)])
            print("batch", *(f"{n}: {r:.2f}x" for n, r in zip(_BATCHES, ratios[-1], strict=True)), flush=True)
    print(
        "median",
        *(f"{n}: {statistics.median(r):.2f}x" for n, r in zip(_BATCHES, zip(*ratios, strict=True), strict=True)),
    )


if __name__ == "__main__":
    main()
