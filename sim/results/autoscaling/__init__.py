"""What an autoscaler did: replica-seconds, starts and stops, cold starts, and what they cost in latency."""
