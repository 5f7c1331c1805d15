"""All mutants: mistakes that someone might make in results, policies and the hot paths of the world."""

from __future__ import annotations

from of_fleets import FLEETS
from of_policies import POLICIES
from of_prefix_cache import PREFIX_CACHE
from of_results import RESULTS
from of_world import WORLD

MUTANTS = (*RESULTS, *POLICIES, *PREFIX_CACHE, *WORLD, *FLEETS)
