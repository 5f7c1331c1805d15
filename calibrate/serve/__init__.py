"""Serve for real: drive a live OpenAI-compatible server with a scenario's traffic and compare with a prediction.

``serve_study`` is the entry point; ``engine`` starts a local vLLM, ``drive`` sends, ``ladder`` measures costs over the
API, ``paired_table`` simulates the same requests and compares.
"""
