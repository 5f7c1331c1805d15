"""Waiting queues with rules of their own; the interface and the two most common ones are in ``admission.py``.

A queue decides which request may join the batch next. It knows the adapter cache, but neither the batch nor the time.
"""
