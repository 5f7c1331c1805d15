"""Training logs: curves, thresholds, and the rules of the four failure modes."""
