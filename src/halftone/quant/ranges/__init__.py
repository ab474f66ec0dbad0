"""Range estimators: from observed values to ``(low, high)`` per group. One per file, the file name is its name."""
