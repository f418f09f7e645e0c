"""Whether a difference is real: gains, intervals and tests, using only NumPy and SciPy."""
