"""What rollouts, faults and held-back rollouts did to requests, in sentences."""
