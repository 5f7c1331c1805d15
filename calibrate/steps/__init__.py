"""``loraplan calibrate steps``: which steps are timed, and on what model."""
