"""What rollouts, faults and held-back rollouts did to requests, and what one design has instead of another."""
