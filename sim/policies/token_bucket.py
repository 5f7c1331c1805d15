"""A token bucket: how many tokens may pass, at a mean rate and in bursts."""

from __future__ import annotations


class TokenBucket:
    """Tokens flow in at a constant rate up to a limit; a request takes as many as it has. Full at the start.

    So in any time of t seconds, requests of at most ``burst + rate × t`` tokens pass.

    :param rate: tokens per second.
    :param burst: the most tokens that it holds.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._level = float(burst)
        self._at_s = 0.0

    def take(self, tokens: int, now: float) -> bool:
        """Take tokens if there are enough; return whether there were."""
        self._flow(now)
        if tokens > self._level:
            return False
        self._level -= tokens
        return True

    def take_due(self, tokens: int, now: float) -> None:
        """Take tokens at the time that ``ready_s`` gave for them: rounding may leave a trace too few."""
        self._flow(now)
        self._level = max(0.0, self._level - tokens)

    def ready_s(self, tokens: int, now: float) -> float:
        """Return when there are as many tokens, if nothing is taken before."""
        self._flow(now)
        return now + max(0.0, tokens - self._level) / self._rate

    def _flow(self, now: float) -> None:
        self._level = min(self._burst, self._level + self._rate * (now - self._at_s))
        self._at_s = now
