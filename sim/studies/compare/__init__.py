"""``loraplan compare``: two runs side by side, and whether the second is better by more than chance."""
