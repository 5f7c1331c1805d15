"""Tasks for workers of tests, which import them by this name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sim.errors import InputError


@dataclass(frozen=True)
class Count:
    """Says numbers from what it has said before, and then ``end``. Each takes a while of computing, in small pieces."""

    name: str
    until: int
    each_s: float = 0.02
    draws: ClassVar[bool] = False

    def run(self, memory: Any) -> Iterator[Any]:
        said = memory.shorts.setdefault(self.name, [])
        while len(said) < self.until:
            ends = time.perf_counter() + self.each_s
            while time.perf_counter() < ends:
                pass
            said.append(len(said))
            yield said[-1]
        yield "end"


@dataclass(frozen=True)
class Die:
    """Ends its process, as the kernel does where memory is short."""

    draws: ClassVar[bool] = False

    def run(self, memory: Any) -> Iterator[Any]:
        yield os.getpid()
        os._exit(9)


@dataclass(frozen=True)
class Refuse:
    """Finds something wrong with the input, or, where it has no key, with itself."""

    key: str
    draws: ClassVar[bool] = False

    def run(self, memory: Any) -> Iterator[Any]:
        if self.key:
            raise InputError("not so", key=self.key, got=3)
        raise ZeroDivisionError("a bug")
        yield


@dataclass(frozen=True)
class Untidy:
    """Takes long, and leaves a file when it is stopped and has cleaned up."""

    file: Path
    cleaning_s: float = 0.05
    draws: ClassVar[bool] = False

    def run(self, memory: Any) -> Iterator[Any]:
        try:
            yield "begun"
            while True:
                time.sleep(0.001)
        finally:
            time.sleep(self.cleaning_s)
            self.file.write_text("cleaned up")
