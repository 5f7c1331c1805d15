"""Profiles from kernel tables: what NVIDIA measured kernel by kernel, added up for a model's shapes.

The extra ``kernels`` brings the tables (``aiconfigurator-core``; ``aisimulate`` has newer ones); only ``kernel_tables``
imports it.
"""
