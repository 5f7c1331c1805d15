"""How a replication is recorded as it goes."""
