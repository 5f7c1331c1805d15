"""What a placement controller did: moves, the loads that they cost, and requests that found their adapter placed."""
