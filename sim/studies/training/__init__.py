"""What training means for serving: the rollout gate, remedies and their cost, a census as a scenario."""
