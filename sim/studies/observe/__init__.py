"""What an engine's metrics page, or Prometheus, says: read, turned into traffic, compared with its simulation."""
