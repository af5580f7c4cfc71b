"""Training: calibration against the original, and what pretraining needs."""
