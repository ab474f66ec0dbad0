"""Look at what layers read while the float model runs on a part of the calibration."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from halftone.calibrate.trajectory import Trajectory
from halftone.models.quant_model import QuantModel

BATCH = 16  # samples a forward


def look_at_inputs(
    model: QuantModel, data: Trajectory, lookers: Mapping[str, Callable[[torch.Tensor], None]], samples: int
) -> None:
    """Hand each layer's inputs, float32, to its looker, by the layer's path; over ``samples`` of the calibration, spread evenly."""

    def hook(look: Callable[[torch.Tensor], None]) -> Callable[[nn.Module, tuple], None]:
        return lambda module, args: look(args[0].float())

    hooks = [model.layer(path).register_forward_pre_hook(hook(look)) for path, look in lookers.items()]
    index = torch.linspace(0, len(data) - 1, min(samples, len(data))).long()
    try:
        with torch.no_grad(), model.in_float():
            for chunk in index.split(BATCH):
                args, kwargs = data.rows(chunk)
                model.module(*args, **kwargs)
    finally:
        for handle in hooks:
            handle.remove()
