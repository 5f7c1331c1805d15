"""Ways of serving adapters: what engines do differently about caches, queues and loads.

A replica works with any ``AdapterMode``. A new one is a class in here, a row in ``sim/spec/adapter_modes.toml``, and a
case in ``sim/world/replica_assembly.py``.
"""
