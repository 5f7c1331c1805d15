"""Several kinds of replica in one fleet: replicas of full models and replicas of adapters."""
