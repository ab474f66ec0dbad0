"""One U-Net call on a CPU by every road from Python: float, other people's int8, and ours, side by side."""
