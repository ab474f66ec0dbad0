"""The native loops give the codes that PyTorch's operators give, in every layout, and are not missed where there is no compiler."""

import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from halftone.foundation.files import private_cache
from halftone.kernels import Grid
from halftone.kernels.linear_weight import LinearWeight
from halftone.kernels.native import build, loops

MAGIC = 1.5 * 2**23
needs_loops = pytest.mark.skipif(build.why_no_loops() is not None, reason=f"no native loops: {build.why_no_loops()}")


def expected(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the codes by way of PyTorch's operators, rounding half to even."""
    codes = (x.float() * grid.factor).add(grid.offset).clamp(MAGIC, MAGIC + grid.top) - MAGIC
    return (codes.to(torch.int32) >> grid.shift).to(torch.uint8)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "first channels": lambda x: x[:, :3],
    "last channels, channels last": lambda x: x.to(memory_format=torch.channels_last)[:, 2:],
    "matrix": lambda x: x.flatten(1),
    "columns": lambda x: x.flatten(1)[:, 5:19],
    "tokens": lambda x: x.flatten(2),
    "columns of tokens": lambda x: x.flatten(2)[..., 1:7],
}


@needs_loops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "grid", [Grid(37.3, MAGIC + 8, 255), Grid(-37.3, MAGIC + 246, 255), Grid(9e3, MAGIC + 31000, 65535, 8)]
)
def test_codes_are_the_operators(layout: str, dtype: torch.dtype, grid: Grid) -> None:
    x = LAYOUTS[layout](torch.randn(3, 7, 5, 9).to(dtype))
    found = loops.encode(x, grid)
    assert found is not None
    assert found.shape == x.shape
    assert torch.equal(found, expected(x, grid))
    if x.ndim == 4 and "last" in layout.split()[-1]:
        assert found.is_contiguous(memory_format=torch.channels_last), "a convolution would reorder it"


@needs_loops
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70), st.integers(0, 127)
)
def test_any_number_has_the_code_of_the_definition(values: list[float], half: int) -> None:
    x = torch.tensor(values)
    for factor in (1.0, 0.5, 255.0):
        grid = Grid(factor, MAGIC + 2 * half, 255)
        assert torch.equal(loops.encode(x, grid), expected(x, grid))


@needs_loops
def test_halves_go_to_even_and_ends_are_clipped() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 254.5, 255.5, 1e30, -1e30, float("inf"), float("-inf")])
    assert loops.encode(x, Grid(1.0, MAGIC, 255)).tolist() == [0, 2, 2, 0, 254, 255, 255, 0, 255, 0]


@needs_loops
def test_many_elements_on_several_threads() -> None:
    x, grid = torch.randn(5, 40_001), Grid(30.0, MAGIC + 128, 255)
    assert torch.equal(loops.encode(x, grid), expected(x, grid))
    assert torch.equal(loops.encode(x[:, 1:], grid), expected(x[:, 1:], grid))


@needs_loops
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (96, 32), (33, 1), (5, 5)])
def test_norm_and_activation_on_the_way(channels: int, groups: int, silu: bool, dtype: torch.dtype) -> None:
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(4, channels, 6, 7) + torch.randn(4, channels, 1, 1)).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    grid = Grid(40.0, MAGIC + 12, 255)
    found = loops.normalise(x, norm, silu, grid)
    assert found is not None
    with torch.no_grad():
        normed = norm(x.double().float()) if dtype is torch.float32 else norm(x.float())
    codes = expected(F.silu(normed) if silu else normed, grid)
    apart = (found.int() - codes.int()).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 1e-3
    assert found.is_contiguous(memory_format=torch.channels_last)


@needs_loops
@pytest.mark.parametrize("size", [(1, 32, 61, 67), (2, 8, 90, 90), (3, 20_000, 1, 1)])
def test_large_images_are_cut_and_put_together(size: tuple[int, ...]) -> None:
    norm, grid = nn.GroupNorm(4, size[1]), Grid(40.0, MAGIC + 12, 255)
    x = (torch.randn(size) + torch.linspace(0, 3, size[2]).view(1, 1, -1, 1)).to(memory_format=torch.channels_last)
    found = loops.normalise(x, norm, True, grid)
    with torch.no_grad():
        codes = expected(F.silu(norm(x)), grid)
    apart = (found.int() - codes.int()).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 1e-3
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(loops.normalise(x, norm, True, grid), found), "threads change nothing"
    finally:
        torch.set_num_threads(threads)


@needs_loops
def test_a_small_variance_beside_a_large_mean_is_kept() -> None:
    norm = nn.GroupNorm(2, 8, affine=False, eps=1e-12)
    x = (1000 + 0.01 * torch.randn(2, 8, 16, 16)).to(memory_format=torch.channels_last)
    grid = Grid(20.0, MAGIC + 128, 255)
    found = loops.normalise(x, norm, False, grid)
    exact = x.double().reshape(2, 2, -1)
    exact = (exact - exact.mean(2, keepdim=True)) / exact.var(2, unbiased=False, keepdim=True).sqrt()
    assert int((found.int() - expected(exact.view_as(x).float(), grid).int()).abs().max()) <= 1


@needs_loops
def test_silu_far_out() -> None:
    norm = nn.GroupNorm(1, 2, affine=False, eps=1e-30)
    norm.weight, norm.bias = nn.Parameter(torch.full((2,), 200.0)), nn.Parameter(torch.zeros(2))
    x = torch.tensor([1.0, -1.0]).repeat(8).view(1, 2, 2, 4).to(memory_format=torch.channels_last)
    grid = Grid(1.0, MAGIC + 4, 255)
    with torch.no_grad():
        wanted = expected(F.silu(norm(x)), grid)
    assert torch.equal(loops.normalise(x, norm, True, grid), wanted)


def test_what_the_loops_do_not_serve_is_left_alone() -> None:
    grid, norm = Grid(1.0, MAGIC, 255), nn.GroupNorm(1, 4)
    for x in (torch.zeros(0, 4), torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, device="meta")):
        assert loops.encode(x, grid) is None
    assert loops.encode(torch.zeros(4, 6).t()[1:3], grid) is None
    for x in (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 9), torch.zeros(0, 4, 3, 3)):
        assert loops.normalise(x, norm, True, grid) is None
    x = torch.zeros(2, 4, 3, 3).to(memory_format=torch.channels_last)
    assert loops.normalise(x, norm, True, Grid(1.0, MAGIC, 65535, 8)) is None
    assert loops.normalise(x, norm.double(), True, grid) is None


def reason(tmp_path: Path, **environment: str) -> str:
    """Return why a fresh process has no loops, "None" where it has."""
    script = "from halftone.kernels.native.build import why_no_loops; print(why_no_loops())"
    full = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", script], env=full, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_without_a_compiler_there_is_a_reason(tmp_path: Path) -> None:
    assert reason(tmp_path, HALFTONE_NATIVE="0") == "switched off by HALFTONE_NATIVE=0"
    assert "no C++ compiler" in reason(tmp_path, PATH=str(tmp_path), CXX="")
    assert "no C++ compiler (nosuch -m64)" in reason(tmp_path, CXX="nosuch -m64")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such machine >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "cannot build the native loops: no such machine" in reason(tmp_path, CXX=str(broken))
    assert not list((tmp_path / "halftone" / "native").iterdir()), "nothing half made is left"


@needs_loops
@pytest.mark.slow
def test_the_library_is_compiled_once_and_again_when_it_is_damaged(tmp_path: Path) -> None:
    assert reason(tmp_path) == "None"
    (made,) = (tmp_path / "halftone" / "native").iterdir()
    before = made.stat().st_mtime_ns
    assert reason(tmp_path) == "None"
    assert made.stat().st_mtime_ns == before
    # Half a library would end the process that loads it.
    made.write_bytes(made.read_bytes()[:9000])
    assert reason(tmp_path) == "None"
    (again,) = (tmp_path / "halftone" / "native").iterdir()
    assert again.stat().st_size > 9000


_LESSER = """
import hashlib
import torch
from torch import nn
from halftone.kernels.contract import Grid
from halftone.kernels.input_codes import MAGIC
from halftone.kernels.native import attention, build, loops, product
assert build.why_no_loops() is None, build.why_no_loops()
draw = torch.Generator().manual_seed(0)
x = torch.randn(2, 32, 9, 7, generator=draw).to(memory_format=torch.channels_last)
grid, norm = Grid(20.0, MAGIC + 100, 255), nn.GroupNorm(4, 32)
with torch.no_grad():
    codes = loops.encode(x, grid), loops.normalise(x, norm, True, grid)
    rows = loops.normalise_rows(torch.randn(40, 64, generator=draw), nn.LayerNorm(64), grid)
print(*(hashlib.sha256(found.contiguous().numpy().tobytes()).hexdigest()[:8] for found in (codes[0],)))
print(*(int(found.long().sum()) for found in (*codes, rows)))
print(product.why_none() is None, attention.why_none("codes") is None)
"""


@needs_loops
@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels of x86-64")
def test_the_loops_of_lesser_processors_give_the_same_codes(tmp_path: Path) -> None:
    """Compiled for processors without AVX512, and for any at all: what intrinsics serve is then missing, and said to be."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    told = {}
    for level in ("native", "x86-64-v3", "x86-64"):
        wrapper = tmp_path / f"compiler-{level}"
        wrapper.write_text(f"""#!/bin/sh
for given in "$@"; do
  shift
  case "$given" in -march=native) set -- "$@" -march={level} ;; *) set -- "$@" "$given" ;; esac
done
exec {compiler} "$@"
""")
        wrapper.chmod(0o755)
        environment = {**os.environ, "CXX": str(wrapper), "XDG_CACHE_HOME": str(tmp_path / level)}
        done = subprocess.run([sys.executable, "-c", _LESSER], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told[level] = done.stdout.splitlines()
    for level in ("x86-64-v3", "x86-64"):
        assert told[level][0] == told["native"][0], "codes to the bit"
        for mine, theirs in zip(told[level][1].split(), told["native"][1].split(), strict=True):
            assert abs(int(mine) - int(theirs)) <= 8, "norms but for a code beside a tie"
        assert told[level][2] == "False False"


def test_a_cache_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = private_cache("native")
    assert folder == tmp_path / "halftone" / "native"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert private_cache("native") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert private_cache("native") is None


@needs_loops
@given(st.integers(1, 5), st.integers(1, 70), st.integers(1, 40), st.booleans(), st.integers(0, 255))
def test_a_few_rows_are_multiplied_exactly(rows: int, width: int, outputs: int, biased: bool, zero: int) -> None:
    random = torch.Generator().manual_seed(rows * width + outputs)
    codes = torch.randint(0, 256, (rows, width), generator=random, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (outputs, width), generator=random, dtype=torch.int8)
    offset = weight.sum(1, dtype=torch.int32) * zero
    scale, bias = torch.rand(outputs, generator=random), torch.randn(outputs, generator=random) if biased else None
    sums = (codes.long() - zero) @ weight.t().long()
    found = loops.few_rows(codes, weight, offset, scale, bias)
    assert found is not None
    assert torch.equal(found, sums.float() * scale + (0 if bias is None else bias))
    assert torch.equal(loops.few_rows(codes.view(rows, 1, width), weight, offset, scale, bias), found[:, None])


@needs_loops
def test_a_weight_is_plain_until_many_rows_come(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randint(-100, 100, (24, 40), dtype=torch.int8)
    held = LinearWeight(weight, torch.full((24,), 0.01), 7)
    few, many = (torch.randint(0, 256, (rows, 40), dtype=torch.uint8) for rows in (16, 17))
    wanted = (few.float() - 7) @ weight.t().float() * 0.01
    before = held.product(few, None)
    assert torch.allclose(before, wanted, atol=1e-4)
    assert held.product(many, None) is None
    assert held(many.shape) is held(few.shape)
    assert held._plain is None, "one copy of the weight, not two"
    assert torch.equal(held.product(few, None), before), "whatever was computed in between"
    wide = LinearWeight(torch.ones(2048, 2049, dtype=torch.int8), torch.ones(2048), 0)
    assert wide.product(torch.ones(1, 2049, dtype=torch.uint8), None) is None, "oneDNN is better at large ones"


@pytest.mark.slow
@needs_loops
def test_a_compiler_without_openmp_is_told(tmp_path: Path) -> None:
    """Its loops are right and slow, which nobody would see."""
    wrapper = tmp_path / "c++"
    wrapper.write_text('#!/bin/sh\nfor each in "$@"; do [ "$each" = -fopenmp ] && exit 1; done\nexec c++ "$@"\n')
    wrapper.chmod(0o755)
    env = {**os.environ, "CXX": str(wrapper), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-m", "halftone", "doctor"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert "loops      compiled for this processor, without OpenMP: on one thread" in said
