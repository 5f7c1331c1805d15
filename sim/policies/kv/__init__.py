"""KV memory of a replica: how many tokens it has, which sequences hold blocks, and what a request needs to join."""
