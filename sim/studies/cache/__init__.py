"""``loraplan cache``: the requests of a trace on caches of several policies and sizes, without times."""
