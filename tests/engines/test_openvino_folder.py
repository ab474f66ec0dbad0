"""An exported graph is taken in place of exporting, and a damaged or foreign one is refused."""

import copy
from pathlib import Path

import pytest
import torch
from tests.engines.conftest import NETWORK, far, run, unet

from halftone.engines import session, set_engine
from halftone.foundation.errors import ArtifactError, OutputError
from halftone.nn import QuantConv2d, QuantLinear

pytest.importorskip("openvino", reason="needs the package openvino: pip install 'openvino>=2025.0'")


def test_an_export_is_taken_in_place_of_exporting(tmp_path: Path) -> None:
    network, x = unet(block_out_channels=(16, 32)), torch.randn(1, 1, 8, 8)
    wanted = run(network, "openvino", x, 5, precision="f32").sample
    folder = session(network).save(tmp_path / "out", (x, 5), {})  # type: ignore[union-attr]
    codes = sum(one.weight.numel() for one in network.modules() if isinstance(one, QuantConv2d | QuantLinear))
    assert (folder / "openvino_model.bin").stat().st_size < 2.5 * codes  # 4 bits, and what belongs to few channels
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" in (folder / "openvino_model.xml").read_text(encoding="utf-8")
    with pytest.raises(OutputError, match="overwrite"):
        session(network).save(folder, (x, 5), {})  # type: ignore[union-attr]
    set_engine(network, "openvino", precision="f32", folder=str(folder))
    with torch.no_grad():
        assert torch.equal(network(x, 5).sample, wanted)
        larger = torch.randn(2, 1, 12, 8)
        assert far(network(larger, 5).sample, run(copy.deepcopy(network), "simulate", larger, 5).sample) <= NETWORK
        with pytest.raises(ArtifactError, match="calls"):
            network(x, 5, return_dict=False)
        other = unet(seed=1, block_out_channels=(16, 32))
        set_engine(other, "openvino", folder=str(folder))
        with pytest.raises(ArtifactError, match="numbers.*halftone export"):
            other(x, 5)


@pytest.mark.parametrize("name", ["openvino_model.bin", "openvino_model.xml", "halftone.json"])
def test_a_damaged_export_is_refused(tmp_path: Path, name: str) -> None:
    network, x = unet(), torch.randn(1, 1, 8, 8)
    set_engine(network, "openvino")
    folder = session(network).save(tmp_path / "out", (x, 5), {})  # type: ignore[union-attr]
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content if name != "halftone.json" else b"{}")
    set_engine(network, "openvino", folder=str(folder))
    with torch.no_grad(), pytest.raises(ArtifactError, match="export"):
        network(x, 5)
