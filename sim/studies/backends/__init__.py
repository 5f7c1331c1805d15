"""Where tasks run: local worker processes, a Dask cluster or a Ray cluster, behind one small protocol.

Studies see ``pool``; ``backend_choice`` opens one. No module here knows what a task computes.
"""
