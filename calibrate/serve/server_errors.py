"""The error of a live server."""

from __future__ import annotations

from sim.errors import LoraplanError


class ServerError(LoraplanError):
    """The server can't be used, or failed during the study: exit code 3; what was measured until then is kept."""

    def __init__(self, problem: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(problem)
        self.problem, self.where, self.hint = problem, where, hint

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{where}{self.problem}{f'; {self.hint}' if self.hint else ''}"
