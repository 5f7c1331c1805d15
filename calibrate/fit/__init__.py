"""From samples to a profile: least squares, held-out errors, and a report of the fit."""
