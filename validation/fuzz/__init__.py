"""Made-up scenarios, traces, profiles, adapters, run directories and command lines; commands killed midway."""
