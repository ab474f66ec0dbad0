"""``python -m benchmarks.graphs NAME=FILE.xml ...``: OpenVINO graphs of one U-Net, taking turns in one process.

So that ours (``halftone export OUT -o DIR``) stands beside one that NNCF quantized. ``NAME=FILE.xml@OPTION:VALUE`` compiles with an
option of OpenVINO's. Prints the median of each and its ratio to the first, of rounds that they ran together; ``--kinds`` adds
where the time of each goes.
"""

import argparse
import statistics
import time
from collections import Counter
from typing import Any

import numpy as np
import openvino as ov

_TOKENS = 77
_WARMUP = 2
_SHOWN = 12


def inputs(model: ov.Model, pixels: int, batch: int) -> dict[int, np.ndarray]:
    """Return noise for every input of a U-Net's graph, by number, in latents of ``pixels`` / 8."""
    random = np.random.default_rng(0)
    found = {}
    for number, port in enumerate(model.inputs):
        shape = port.get_partial_shape()
        rank = shape.rank.get_length()
        sizes = {4: [batch, 0, pixels // 8, pixels // 8], 3: [batch, _TOKENS, 0], 2: [batch, 0]}.get(rank, [1] * rank)
        full = [size or shape[axis].get_length() for axis, size in enumerate(sizes)]
        whole = port.get_element_type().is_integral()
        found[number] = np.full(full, 500, np.int64) if whole else random.standard_normal(full).astype(np.float32)
    return found


def compiled(source: str, pixels: int, batch: int, threads: int) -> tuple[Any, dict[int, np.ndarray]]:
    """Return a request for ``FILE.xml@OPTION:VALUE`` and its inputs."""
    file, _, given = source.partition("@")
    options = dict(each.split(":") for each in given.split(",") if each)
    core = ov.Core()
    model = core.read_model(file)
    arrays = inputs(model, pixels, batch)
    model.reshape({number: list(array.shape) for number, array in arrays.items()})
    common = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    return core.compile_model(model, "CPU", {**common, **options}).create_infer_request(), arrays


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="benchmarks.graphs", description=__doc__)
    parser.add_argument("graphs", nargs="+", metavar="NAME=FILE.xml[@OPTION:VALUE]")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", action="store_true")
    how = parser.parse_args()
    roads = {
        name: compiled(file, how.pixels, how.batch, how.threads)
        for name, _, file in (g.partition("=") for g in how.graphs)
    }
    seconds: dict[str, list[float]] = {name: [] for name in roads}
    names = list(roads)
    for number in range(_WARMUP + how.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            request, arrays = roads[name]
            began = time.perf_counter()
            request.infer(arrays)
            seconds[name].append(time.perf_counter() - began)
    first = seconds[names[0]][_WARMUP:]
    for name in names:
        own = seconds[name][_WARMUP:]
        ratio = statistics.median(mine / other for mine, other in zip(own, first, strict=True))
        times = f"median {1e3 * statistics.median(own):.1f} ms, least {1e3 * min(own):.1f} ms"
        print(f"{name}: {times}, {ratio:.3f} x {names[0]}, of the least {min(own) / min(first):.3f}", flush=True)
        if how.kinds:
            kinds: Counter[str] = Counter()
            for each in roads[name][0].profiling_info:
                kinds[f"{each.node_type} {each.exec_type}"] += each.real_time.total_seconds()
            for kind, spent in kinds.most_common(_SHOWN):
                print(f"  {1e3 * spent:8.1f} ms  {kind}")


if __name__ == "__main__":
    main()
