"""Statistics of request streams, and laws fitted to them: gaps, changing rates, popularity, lengths.

May hold: statistics and likelihoods over arrays. May not: read files, know caches, choose between models of traffic.
"""
