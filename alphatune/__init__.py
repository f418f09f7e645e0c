"""Make a trained BatchNorm network better without retraining it."""
