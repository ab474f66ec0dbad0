"""Decisions: what is split, rounded, reconstructed, calibrated. One mechanism per file; methods do not know each other."""
