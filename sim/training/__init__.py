"""What adapters bring from their training: files, sizes, logs, and what went wrong there.

May hold: readers of strangers' files, a census of folders, rules that judge a training log, named thresholds.
May not: simulate (``studies`` prices a cure), print, import torch, or load a pickle.
"""
