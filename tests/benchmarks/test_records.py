"""What makes a row one that need not be measured again."""

import json
from pathlib import Path

from benchmarks.records import there


def test_a_row_is_there_with_its_protocol_whatever_its_rounds(tmp_path: Path) -> None:
    file, protocol = tmp_path / "row.json", {"model": "small", "pixels": (8, 8), "rounds": 9}
    assert not there(file, protocol)
    file.write_text(json.dumps({"protocol": {**protocol, "rounds": 4}}))
    assert there(file, protocol) and there(file, {"model": "small", "pixels": [8, 8]})
    assert not there(file, {**protocol, "pixels": (8, 16)}) and not there(file, {**protocol, "device": "cpu"})
