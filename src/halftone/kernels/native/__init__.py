"""Loops that PyTorch has no single operator for, in C++, compiled on first use; everything runs without them, more slowly."""
