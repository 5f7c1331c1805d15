"""What training means for serving: what adapters bring, what went wrong in it, and what a remedy costs a fleet."""
