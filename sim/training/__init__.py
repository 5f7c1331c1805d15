"""Adapters from training: files, sizes, logs, and what went wrong in training.

May hold: readers of untrusted files, a census of folders, rules that judge a training log, named thresholds.
May not: simulate (``studies`` prices remedies), print, import torch, or load a pickle.
"""
