"""What the rollouts of one replication know of the versions on all replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.world.rollouts.barriers import Barriers
from sim.world.rollouts.duplicate_version_bytes import DuplicateVersionBytes
from sim.world.rollouts.held_requests import HeldRequests
from sim.world.rollouts.versions import Versions


@dataclass(frozen=True, slots=True)
class VersionState:
    """Versions of adapters on all replicas.

    :ivar versions: by replica; a restarted replica keeps its object, emptied.
    :ivar held: requests that wait until an adapter has been updated.
    :ivar duplicate_bytes: bytes of old versions in GPU memory that also holds the new one.
    """

    versions: Sequence[Versions]
    barriers: Barriers
    held: HeldRequests
    duplicate_bytes: DuplicateVersionBytes
