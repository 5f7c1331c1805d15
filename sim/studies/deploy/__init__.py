"""Manifests of what a run simulated: shell scripts, Compose and Kubernetes files.

May not: decide anything about the design, simulate, print. An engine that was not simulated has no manifest.
"""
