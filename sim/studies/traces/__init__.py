"""Studies of recorded traffic: diagnosis, fitted traffic, cache-only replay."""
