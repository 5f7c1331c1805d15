"""New versions of adapters that go out while traffic flows.

Replicas know nothing of rollouts: they are called back through listeners.
"""
