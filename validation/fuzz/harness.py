"""What the atheris harnesses share: bytes from the fuzzer, or from a corpus where atheris is not installed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def shortened(samples: Iterable[bytes]) -> list[bytes]:
    """Return samples, and beginnings of them: a corpus of files whole and cut short."""
    return [piece for sample in samples for piece in (sample, sample[: len(sample) // 2], sample[:9], sample[1:])]


def fuzz(read: Callable[[Path], object], corpus: list[bytes], name: str) -> None:
    """Read what the fuzzer makes up; with ``--corpus`` only the corpus. Ours is every error but ``InputError``.

    :param read: reads one file.
    :param name: of the file.
    """
    from sim.errors import InputError

    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(1 << 60))

        def once(data: bytes) -> None:
            # Another name each time: the reader of traces keeps what it has read by name, time and size.
            file = Path(folder) / str(next(numbers)) / name
            file.parent.mkdir()
            file.write_bytes(data)
            try:
                read(file)
            except InputError as error:
                words = str(error)
                if not words.isprintable():
                    raise AssertionError(words) from error
            finally:
                file.unlink()
                file.parent.rmdir()

        if "--corpus" in sys.argv:
            for data in corpus:
                once(data)
            print(len(corpus), "files read or refused")
            return
        import atheris

        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        for number, data in enumerate(corpus):
            (seeds / str(number)).write_bytes(data)
        atheris.Setup([*sys.argv, str(seeds)], once)
        atheris.Fuzz()
