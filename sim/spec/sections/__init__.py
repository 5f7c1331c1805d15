"""The sections of a scenario file: one module for each, as strict models.

Sections hold data and checks; they read no files.
"""
