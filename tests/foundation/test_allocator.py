"""Freed memory is kept where the C library can, and only where the user has not decided otherwise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="glibc")
# Page faults of the second of two equal rounds, each of which frees all it has.
SCRIPT = """
import json, resource, sys
from halftone.foundation.allocator import keep_freed_memory, keeps_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    blocks = [bytearray(b"1") * (8 * 2**20) for _ in range(12)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
before = faults()
print(json.dumps({"told": told, "keeps": keeps_freed_memory(), "faults": faults() - before}))
"""


@LINUX
def test_freed_memory_is_given_back() -> None:
    script = """
from halftone.foundation.allocator import give_back_freed_memory, keep_freed_memory
import psutil
keep_freed_memory()
blocks = [bytearray(b"1") * 2**20 for _ in range(200)]
del blocks
before = psutil.Process().memory_info().rss
give_back_freed_memory()
print(before - psutil.Process().memory_info().rss)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 100 * 2**20


def asked(tmp_path: Path, how: str, **variables: str) -> dict:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), how], check=True, capture_output=True, env={"PATH": "/usr/bin", **variables}
    )
    return dict(json.loads(done.stdout))


@LINUX
def test_a_block_that_was_freed_is_used_again(tmp_path: Path) -> None:
    plain, kept = asked(tmp_path, "leave"), asked(tmp_path, "keep")
    assert (plain["told"], plain["keeps"]) == (False, False)
    if not kept["told"]:
        pytest.skip("this C library has no mallopt")
    assert kept["keeps"]
    assert plain["faults"] > 200
    assert kept["faults"] < plain["faults"] / 10


@LINUX
def test_who_sets_the_variables_decides(tmp_path: Path) -> None:
    found = asked(tmp_path, "keep", MALLOC_TOP_PAD_="131072")
    assert (found["told"], found["keeps"]) == (False, False)
