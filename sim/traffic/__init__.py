"""Traffic: adapters, arrival times, popularity, lengths, traces.

May hold: sampling with named random streams, reading traces; all of it numpy arrays.
May not: know caches, servers or simulated time.
"""
