"""What a page simulates in worker processes: the tasks, the processes, and what keeps their results.

Nothing here knows of HTTP or HTML.
"""
