"""What a stream of requests is like, and laws fitted to it: gaps, rates that move, popularity, lengths.

May hold: statistics and likelihoods over arrays. May not: read files, know caches, choose between models of traffic.
"""
