"""The local page of ``loraplan ui``: controls over a scenario, and answers that follow them.

It puts studies and reports together, as commands do, and has no way of its own to compute or to draw. ``page/`` holds
its template, style and script; ``simulating/`` what runs in worker processes, and what sends it there.
``mcp_server.py`` answers agents from the same library and workers.
"""
