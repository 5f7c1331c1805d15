"""What a placement controller did: moves, the loads that they cost, and how many requests found their adapter placed."""
