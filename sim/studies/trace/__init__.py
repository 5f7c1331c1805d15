"""``loraplan trace``: what recorded traffic is like, and a scenario with similar traffic."""
