"""Several kinds of replica in one fleet: full models beside adapters."""
