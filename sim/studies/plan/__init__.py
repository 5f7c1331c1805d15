"""Plans: which value, or which fleet, meets the SLO; and what one change would do.

What may live here: candidates, screening by formulas, evaluations of candidates, search, answer, what-if, levers.
What may not: words for people (``reports``), printing.
"""
