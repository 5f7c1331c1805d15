"""Results of the commands on traces, as plain values."""
