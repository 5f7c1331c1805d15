"""What tenants got: metrics over the requests of each, and their file.

The statistics are those of the fleet; no tenant has any of its own.
"""
