"""What tenants got: metrics over the requests of each, the terms of their SLOs, and their file.

The statistics are those of the fleet; no tenant has any of its own.
"""
