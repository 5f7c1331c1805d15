"""What GPU memory holds: the KV cache, adapter slots, each GPU's share of a replica, and the caches of one replica."""
