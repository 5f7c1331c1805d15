"""Predictions beside measured runs and recorded engine steps."""
