"""The OpenVINO engine in copies, threads and forks, and on a processor that saturates."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tests.engines.conftest import run, unet
from torch import nn

from halftone.engines import running, set_engine
from halftone.foundation.errors import KernelError

pytest.importorskip("openvino", reason="needs the package openvino: pip install 'openvino>=2025.0'")


def test_copies_pickles_and_threads() -> None:
    network, x = unet(), torch.randn(1, 1, 8, 8)
    wanted = run(network, "openvino", x, 5, precision="f32").sample
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert running(twin) == "openvino" and torch.equal(twin(x, 5).sample, wanted)
    other, found = unet(seed=1), {}
    set_engine(other, "openvino", precision="f32")

    def call(name: str, each: nn.Module) -> None:
        with torch.no_grad():
            found[name] = [each(x, 5).sample for _ in range(4)]

    threads = [threading.Thread(target=call, args=(f"{n}", each)) for n, each in enumerate((network, network, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, wanted) for name in "01" for each in found[name])
    assert not torch.equal(found["2"][0], wanted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # of forks of processes with threads, which is what this is about
def test_a_fork_says_what_to_do_instead_of_waiting_for_ever() -> None:
    network, x = unet(), torch.randn(1, 1, 8, 8)
    run(network, "openvino", x, 5)
    here, there = multiprocessing.Pipe()

    def call() -> None:
        try:
            with torch.no_grad():
                network(x, 5)
            there.send("ran")
        except KernelError as error:
            there.send(str(error))

    child = multiprocessing.get_context("fork").Process(target=call)
    child.start()
    try:
        assert here.poll(60) and "spawn" in here.recv()
    finally:
        child.join(10)
        child.kill()


_SATURATES = """
import torch
from torch import nn
from halftone.engines import session, set_engine
from halftone.engines.openvino.saturation import saturates
from halftone.formats import Affine
from halftone.nn import QuantLinear, Scheme
from halftone.quant import QuantSpec
A8 = QuantSpec("uint8")
for bits, products in ((8, {}), (4, {"u8", "i8"})):
    one = QuantLinear(64, 32)
    affine = Affine(torch.full((1, 32), 0.01), torch.full((1, 32), 2.0 ** (bits - 1)))
    codes = torch.full((32, 64), 2**bits - 1, dtype=torch.uint8)
    one.hold(codes, affine, Scheme(QuantSpec(f"uint{bits}", "channel", "symmetric"), A8))
    one.set_site_affine("input", A8.affine(torch.tensor([0.0]), torch.tensor([1.0])))
    network, x = nn.Sequential(one), torch.ones(8, 64)
    set_engine(network, "simulate")
    wanted = network(x)
    set_engine(network, "openvino", precision="f32")
    assert torch.allclose(network(x), wanted, rtol=1e-5), (bits, "wrong")
    found = set(session(network).products((x,), {}).values())
    assert found <= (products or {"f32"}), (bits, found)
print(saturates())
"""


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="VNNI is masked as AVX512 without it, which needs AVX512",
)
def test_products_that_would_saturate_are_float() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SATURATES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"


_INTERRUPTED = """
import ctypes, gc, signal, threading
import torch
from tests.engines.conftest import run, unet
def stack():
    room = (ctypes.c_uint64 * 3)()
    assert ctypes.CDLL(None).sigaltstack(None, room) == 0
    return room[0]
before, held = stack(), [unet()]
run(held[0], "openvino", torch.randn(1, 1, 8, 8), 5)
assert stack() == before, "a signal stack that is freed with the model"
def let_go():
    held.clear()
    gc.collect()
away = threading.Thread(target=let_go)
away.start()
away.join()
signal.signal(signal.SIGINT, signal.default_int_handler)  # what began in the background of a shell ignores it
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signal stacks are looked at on Linux")
def test_an_interrupt_after_a_model_is_an_interrupt() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _INTERRUPTED], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.split()[-1] == "interrupted", done.stderr
