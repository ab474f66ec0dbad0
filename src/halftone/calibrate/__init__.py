"""Calibration data from the model's own sampler, and walking a model block by block with them."""

from halftone.calibrate.trajectory import Trajectory
from halftone.calibrate.walk import Unit, Walk

__all__ = ["Trajectory", "Unit", "Walk"]
