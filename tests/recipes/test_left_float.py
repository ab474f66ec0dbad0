"""What a policy asks for and the model cannot have is said while quantizing, kept in the artifact and shown by inspect."""

from pathlib import Path

import pytest
from diffusers import DDIMScheduler
from tests.models.test_left_float import TwoExperts
from tests.tiny import pipeline, tiny_unet
from torch import nn

import halftone
from halftone.artifact import described
from halftone.cli.inspect import _human
from halftone.evaluate.inspection import inspect_model
from halftone.foundation.progress import Progress

QUICK = ("calibration.samples=4",)


class Processor(nn.Module):
    """Computes as the plain one does, but nobody here can know that."""

    def __init__(self, plain: object) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.plain(*args, **kwargs)


def test_operands_and_a_second_denoiser(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = TwoExperts(tiny_unet(), DDIMScheduler(), tiny_unet(1))
    attention = pipe.unet.mid_block.attentions[0]
    attention.processor = Processor(attention.processor)
    before = inspect_model(pipe, agreement=False)
    assert [each.path for each in before.float_denoisers] == ["unet_2"]
    assert before.notes == ()
    done = halftone.quantize(pipe, "rtn-w8a8", steps=2, overrides=QUICK, progress=Progress())
    operands, second = done.report["left_float"]
    assert "1 Attention stay float" in operands
    assert "(mid_block.attentions.0)" in operands
    assert "'unet_2' (UNet2DModel) stays float" in second
    assert f"note: {operands}" in capsys.readouterr().err
    assert described(pipe.unet).notes["left_float"] == [operands, second]
    found = inspect_model(pipe, agreement=False)
    assert found.notes == (operands, second)
    assert found.plain()["notes"] == [operands, second]
    shown = _human(found)
    assert f"Note: {operands}" in shown
    assert "Float beside it: unet_2 (UNet2DModel)" in shown


def test_weights_without_a_role_are_shown() -> None:
    unet = tiny_unet(num_class_embeds=5)
    found = inspect_model(unet)
    assert [(each.path, each.kind) for each in found.without_role] == [("class_embedding.weight", "Embedding")]
    assert found.totals["without_role"] == 1
    assert "Embedding: class_embedding.weight 5x32" in _human(found)


def test_nothing_is_said_where_there_is_nothing_to_say(tmp_path: Path) -> None:
    pipe = pipeline(tiny_unet())
    done = halftone.quantize(pipe, "rtn-w8a8", steps=2, overrides=QUICK)
    assert done.report["left_float"] == []
    assert "left_float" not in described(pipe.unet).notes
    shown = _human(inspect_model(pipe, agreement=False))
    assert "Note" not in shown
    assert "Float" not in shown
