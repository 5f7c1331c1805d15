"""The options of real engines and what a scenario has for each: tables, read in both directions.

Error messages, ``docs/init.md`` and the command lines that configure an engine like a scenario follow from
them. A table holds no rule of an engine: these are in ``sim/spec/engines.py``.
"""
