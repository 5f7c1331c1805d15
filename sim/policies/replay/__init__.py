"""Cache-only replay: the policies of the simulator without time, and formulas to compare them with."""
