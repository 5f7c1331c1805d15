"""Compare predictions with measured runs and with recorded engine steps; fit costs to measured times."""
