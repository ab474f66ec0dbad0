"""The ``torch`` engine on a whole network: in forks, in workers, in threads, beside another, on lesser processors."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.engines.conftest import NETWORK, conditional_unet, conditions, far, run, unet
from torch import nn

from halftone.engines import set_engine
from halftone.kernels.native import product
from halftone.nn.layers import quantized_layers
from halftone.nn.running import set_weights

ROOT = Path(__file__).parents[2]
SIDE = 64  # enough numbers for parallel loops


def picture(seed: int = 0, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(seed))


def called(network: nn.Module, x: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Return the threads of the process and the output; at the module's level, so that a worker can be sent it."""
    with torch.no_grad():
        return torch.get_num_threads(), network(x, 5).sample


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of forks of processes with threads, which is what this is about
@pytest.mark.parametrize("warm", [True, False], ids=["after a call", "before any"])
def test_a_fork_computes_on_one_thread(warm: bool) -> None:
    network, x = unet(), picture()
    twin = unet()
    wanted = run(twin, "torch", x, 5).sample  # threads are there in any case
    set_engine(network, "torch")
    if warm:
        run(network, "torch", x, 5)
    here, there = multiprocessing.Pipe()

    def call() -> None:
        threads, found = called(network, x)
        # Lists: tensors between processes need file descriptors, which are not what this is about.
        there.send((threads, found.flatten().tolist()))

    before = torch.get_num_threads()
    child = multiprocessing.get_context("fork").Process(target=call)
    child.start()
    try:
        assert here.poll(60), "the fork waits for threads that it does not have"
        threads, found = here.recv()
    finally:
        child.join(10)
        child.kill()
    assert threads == 1 and torch.get_num_threads() == before
    assert far(torch.tensor(found), wanted.flatten()) < 1e-6


def test_a_worker_gets_the_model_by_pickle() -> None:
    network, x = unet(), picture()
    wanted = run(network, "torch", x, 5).sample
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        _, found = workers.submit(called, network, x).result(timeout=120)
    assert far(found, wanted) < 1e-6


def test_threads_that_call_a_network_for_the_first_time_together() -> None:
    x = picture()
    wanted = run(unet(), "torch", x, 5).sample
    for _ in range(5):
        network, found, start = unet(), [], threading.Barrier(4)
        codes = [layer.codes() for _, layer in quantized_layers(network)]
        set_engine(network, "torch")
        set_weights(network, "ready")

        def call(network: nn.Module = network, found: list = found, start: threading.Barrier = start) -> None:
            start.wait()
            found.append(called(network, x)[1])

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4 and all(torch.equal(each, wanted) for each in found)
        assert all(
            torch.equal(old, layer.codes()) for old, (_, layer) in zip(codes, quantized_layers(network), strict=True)
        )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_a_thread_of_its_own_computes_on_as_many_threads_as_it_was_told() -> None:
    """In a process whose OpenMP would take five, PyTorch was told two: a new Python thread must know that too."""
    program = """
import threading, os, torch
torch.set_num_threads(2)
from tests.engines.conftest import run, unet
network, x = unet(), torch.randn(2, 1, 64, 64)
def count(): return len(os.listdir("/proc/self/task"))
before, seen = count(), []
def call():
    run(network, "torch", x, 5)
    seen.append(count())
thread = threading.Thread(target=call)
thread.start(); thread.join()
print(seen[0] - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "5"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) <= 2, "itself, and one more"


def test_two_networks_in_threads_do_not_disturb_each_other() -> None:
    networks, x = [unet(seed=seed) for seed in (0, 1)], picture()
    wanted = [run(network, "torch", x, 5).sample for network in networks]
    assert far(*wanted) > 0.1
    found: dict[int, list[torch.Tensor]] = {}

    def call(number: int) -> None:
        found[number] = [called(networks[number % 2], x)[1] for _ in range(4)]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, wanted[number % 2]) for number, outputs in found.items() for each in outputs)


@pytest.mark.parametrize("sizes", [[(64, 64), (8, 8), (64, 64)], [(24, 40), (10, 6), (6, 10)]], ids=str)
def test_sizes_change_between_calls(sizes: list[tuple[int, int]]) -> None:
    network = unet()
    for size in sizes:
        x = picture(0, *size)
        wanted = run(network, "simulate", x, 5).sample
        assert far(run(network, "torch", x, 5).sample, wanted) < NETWORK


@pytest.mark.parametrize("batch", range(1, 9))
def test_batches(batch: int) -> None:
    network, x = unet(), torch.randn(batch, 1, 16, 8, generator=torch.Generator().manual_seed(batch))
    assert far(run(network, "torch", x, 5).sample, run(network, "simulate", x, 5).sample) < NETWORK


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (12, 4), (7, 9)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_texts_and_sizes_change_between_calls_of_a_conditional_network(batch: int, size: tuple[int, int]) -> None:
    network, draw = conditional_unet(), torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 1, *size, generator=draw)
    texts = [conditions(batch, tokens, seed) for seed, tokens in enumerate((5, 5, 7))]
    for given in (*texts, texts[0]):
        wanted = run(network, "simulate", x, 5, **given).sample
        assert far(run(network, "torch", x, 5, **given).sample, wanted) < NETWORK


# What is rounded to bfloat16 between layers lies beside another tie now and then.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, NETWORK), (torch.bfloat16, 2 * NETWORK)], ids=str)
def test_residuals_of_a_controlnet_are_added(dtype: torch.dtype, bound: float) -> None:
    network, x = conditional_unet(), picture(0, 8, 8)
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    given = conditions(2)
    plain = run(network, "simulate", x, 5, **given).sample
    shapes = [(2, 8, 8, 8), (2, 8, 8, 8), (2, 8, 4, 4), (2, 16, 4, 4)]
    given["down_block_additional_residuals"] = tuple(random(*shape) for shape in shapes)
    given["mid_block_additional_residual"] = random(2, 16, 4, 4)
    wanted = run(network, "simulate", x, 5, **given).sample
    assert far(plain, wanted) > 0.1
    given = torch.utils._pytree.tree_map(lambda value: value.to(dtype), given)
    found = run(network.to(dtype), "torch", x.to(dtype), 5, **given).sample
    assert found.dtype == dtype and far(found, wanted) < bound


_LESSER = """
import torch
from tests.engines.conftest import NETWORK, conditional_unet, conditions, far, run, unet
from halftone.nn.layers import quantized_layers
network, x = unet(), torch.randn(2, 1, 16, 8)
wanted = run(network, "simulate", x, 5).sample
assert far(run(network, "torch", x, 5).sample, wanted) < NETWORK
other, given = conditional_unet(), conditions(2)
wanted = run(other, "simulate", x, 5, **given).sample
assert far(run(other, "torch", x, 5, **given).sample, wanted) < NETWORK
half, given = other.to(torch.bfloat16), torch.utils._pytree.tree_map(lambda value: value.bfloat16(), given)
found, defined = (far(run(half, engine, x.bfloat16(), 5, **given).sample, wanted) for engine in ("torch", "simulate"))
assert found < 1.3 * defined, (found, defined)
print(*sorted({layer.choice().name for each in (network, other) for _, layer in quantized_layers(each)}))
"""


@pytest.mark.parametrize(
    "mask",
    [
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        {"HALFTONE_NATIVE": "0"},
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "5"},
    ],
    ids=lambda mask: " ".join(f"{name}={value}" for name, value in mask.items()),
)
def test_lesser_processors_compute_the_same(mask: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LESSER],
        cwd=ROOT, env={**os.environ, **mask}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = set(done.stdout.splitlines()[-1].split())
    if mask.get("HALFTONE_NATIVE") and product.why_none() is None:
        assert kernels == {"onednn_int8"} | (kernels & {"reference"}) and "onednn_int8" in kernels
    elif mask.get("ONEDNN_MAX_CPU_ISA"):
        assert "vnni_int8" not in kernels


def test_threads_are_honoured() -> None:
    network, x = unet(), picture()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = run(network, "torch", x, 5).sample
        set_engine(network, "torch")
        assert called(network, x)[0] == 1
    finally:
        torch.set_num_threads(before)
    assert torch.equal(run(network, "torch", x, 5).sample, wanted)
