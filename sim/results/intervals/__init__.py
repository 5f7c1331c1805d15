"""Intervals by textbook formulas: Student's t and Wilson's. Which of them a metric gets is decided outside."""
