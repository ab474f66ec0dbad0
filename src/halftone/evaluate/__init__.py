"""Measures of a quantized model: against the data (Fréchet distance) and against its float original (paired)."""
