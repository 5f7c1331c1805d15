"""Where tasks run: worker processes here, a Dask cluster or a Ray cluster, behind one small protocol.

``pool`` is what studies see, ``where`` opens one. No module here knows what a task computes.
"""
