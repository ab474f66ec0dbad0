"""Whether a denoiser's answers say anything: one that always answers with the same number cannot be calibrated."""

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import outputs
from halftone.foundation.errors import CalibrationError


def check_answers(module: nn.Module, data: Trajectory) -> None:
    """Call ``module`` on the first and the last sample of ``data`` and look at its outputs.

    Raises:
        CalibrationError: every output holds one number only.
    """
    index = torch.tensor([0, len(data) - 1]).unique()
    args, kwargs = data.rows(index)
    with torch.no_grad():
        found = outputs(module(*args, **kwargs))
    values = [out.flatten() for out in found if out.numel() > 1]
    if values and all(bool((value == value[0]).all()) for value in values):
        got = f"the constant {float(values[0][0]):g}"
        fix = "Check the float model: are its weights there, and is any of them not zero?"
        raise CalibrationError(f"outputs of {type(module).__name__}", "outputs that vary", got, fix)
