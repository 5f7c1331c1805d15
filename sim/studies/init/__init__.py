"""First scenarios: drafted from what a user has, a command line, a manifest, a log or a folder of adapters."""
