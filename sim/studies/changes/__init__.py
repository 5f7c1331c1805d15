"""What rollouts, faults and routers did: at one point, compared with each other, and as a part of a run's page."""
