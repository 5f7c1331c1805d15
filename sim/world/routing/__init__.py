"""What routers see of a fleet, and how old it is.

The decisions themselves are in ``sim.policies.routing``.
"""
