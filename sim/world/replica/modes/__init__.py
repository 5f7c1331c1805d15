"""Ways of serving adapters, one a file: what engines do differently about caches, queues and loads.

A replica works with any ``AdapterMode``; a new one is a class in here, a row in ``sim/spec/modes.py``, and a case in
``sim/world/replica/assembly.py``.
"""
