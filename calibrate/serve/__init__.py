"""Serve for real: drive a live OpenAI-compatible server with a scenario's traffic, and hold a prediction against it.

``study`` is the whole; ``engine`` starts a local vLLM, ``drive`` sends, ``ladder`` measures costs over the API, and
``predict`` and ``compare`` say what the simulator makes of the same requests. Nothing here is imported by ``sim``.
"""
