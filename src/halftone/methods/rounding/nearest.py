"""Round every weight to the nearest code: the baseline, and the start of every other rounding."""

from dataclasses import dataclass
from typing import Any, ClassVar

from halftone.calibrate.trajectory import Trajectory
from halftone.methods.contract import AbstractMethod, Run, StepReport
from halftone.methods.effort import Effort, Job
from halftone.models.cost import Work
from halftone.models.quant_model import QuantModel
from halftone.quant.weights import passes, range_estimator


@dataclass(frozen=True)
class Nearest(AbstractMethod):
    """Fit each weight's range per output channel (and segment) and round to nearest.

    Attributes:
        range: a range estimator by name, or a mapping with its ``name`` and fields.
    """

    gives: ClassVar[tuple[str, ...]] = ("weight_scales",)
    range: str | dict[str, Any] = "shrink"

    def __post_init__(self) -> None:
        range_estimator(self.range)  # a recipe that names none is refused when it is read

    def apply(self, model: QuantModel, data: Trajectory, run: Run) -> StepReport:
        layers = {}
        schemes = model.plan.quantized()
        for path in run.progress.track(schemes, "rounding weights", unit="layers"):
            scheme, weight = schemes[path], model.target(path)
            layer = model.layer(path)
            layer.hold_nearest(weight, scheme, self.range)
            error = (layer.dequantized_weight() - weight).square().sum() / weight.square().sum().clamp(min=1e-20)
            layers[path] = {"weight_error": float(error.sqrt())}
        return StepReport(layers)

    def effort(self, job: Job) -> Effort:
        functions = passes(self.range) + 10
        return Effort(Work(elements=functions * job.weights(), calls=functions * len(job.quantized)))
