"""KV memory of a replica: how many blocks there are, and what a request needs to join the batch."""
