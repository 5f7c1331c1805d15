"""Which replicas the routers of a fleet believe to be up, in all of their views."""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.routing import View
from sim.traffic.request import Request


class ReplicaViews:
    """The views of all routers of a fleet, in which replicas go down and come up.

    :param views: each of some replicas, all of them up; a single one is of all, up or not.
    :param of_request: where there are several, that of the router of each request: by adapter, and last of the base
        model.
    """

    def __init__(self, views: Sequence[View], of_request: Sequence[View] = ()) -> None:
        self._views = [(view, None if len(views) == 1 else frozenset(view.up)) for view in views]
        self._of_request = of_request

    def none_up(self, request: Request) -> bool:
        """Return whether no replica that takes a request is up."""
        view = self._of_request[request.adapter] if self._of_request else self._views[0][0]
        return not view.up

    def goes_down(self, replica: int) -> None:
        """Exclude a replica from routing, if it isn't."""
        for view, _ in self._views:
            if replica in view.up:
                view.goes_down(replica)

    def comes_up(self, replica: int) -> None:
        """Include a replica in routing again."""
        for view, replicas in self._views:
            if replicas is None or replica in replicas:
                view.comes_up(replica)
