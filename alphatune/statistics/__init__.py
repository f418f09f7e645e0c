"""What a difference is worth: gains, intervals and tests, in NumPy and SciPy alone."""
