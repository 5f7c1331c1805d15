"""One module for each command, or for a few that belong together: options, the call of a verb, what is printed.

A command decides nothing and computes nothing: verbs are in ``sim.studies``, sentences in ``reports.text``. A study
that is a folder has its own ``command.py`` there.
"""
