"""All mutants: mistakes that someone might make in results, policies and the hot paths of the world."""

from __future__ import annotations

from validation.mutants.of_fleets import FLEETS
from validation.mutants.of_policies import POLICIES
from validation.mutants.of_prefix_cache import PREFIX_CACHE
from validation.mutants.of_results import RESULTS
from validation.mutants.of_world import WORLD

MUTANTS = (*RESULTS, *POLICIES, *PREFIX_CACHE, *WORLD, *FLEETS)
