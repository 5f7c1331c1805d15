"""Fuzz a reader of files by coverage: ``pip install atheris``, then ``atheris_readers.py traces -runs=100000``.

Readers are ``traces`` and ``weights``. ``--corpus`` reads only the corpus and needs no atheris.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

Reader = tuple[Callable[[Path], object], Iterable[bytes], str]
"""Reads one file; a corpus of files; and the name that each gets."""


def instrumented(*packages: str) -> contextlib.AbstractContextManager[None]:
    """Return a context in which imports of packages are instrumented."""
    if "--corpus" in sys.argv:
        return contextlib.nullcontext()
    import atheris

    instrumenting: contextlib.AbstractContextManager[None] = atheris.instrument_imports(include=list(packages))
    return instrumenting


def traces() -> Reader:
    """Return what reads a file as a trace, and as adapters alone."""
    with instrumented("sim.traffic.tables", "sim.traffic.traces"):
        from sim.traffic.traces import read
    from sim.errors import InputError
    from sim.spec.sections.trace_source import Trace

    sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
    from trace_samples import LOGS, SAMPLES

    def read_both(file: Path) -> None:
        with contextlib.suppress(InputError):
            read.read_adapter_sequence(Trace(file=str(file), skip_bad=False))
        read.read_trace(Trace(file=str(file), skip_bad=True))

    return read_both, [*SAMPLES.values(), *LOGS.values()], "t"


def weights() -> Reader:
    """Return what reads an adapter's weights alone, and as part of an adapter; the corpus is zeros of many shapes."""
    with instrumented("sim.training"):
        from sim.training.files import adapter_folder, safetensors_header
    from calibrate.loads.synthetic_adapters import header_of
    from sim.errors import InputError
    from sim.spec.scenario import Targets

    def read_both(file: Path) -> None:
        with contextlib.suppress(InputError):
            safetensors_header.read_header(file)
        config = file.with_name("adapter_config.json")
        config.write_text('{"r": 2}')
        try:
            adapter_folder.read_adapter(file.parent)
        finally:
            config.unlink()

    targets: tuple[Targets, ...] = (("q",), ("q", "v"))
    shapes = [(rank, which, dtype) for rank in (1, 2, 64) for which in targets for dtype in ("bf16", "fp32")]
    headers = [header_of("tiny", *shape) for shape in shapes]
    return read_both, [start + bytes(size) for start, size in headers], "adapter_model.safetensors"


def fuzz(read: Callable[[Path], object], samples: Iterable[bytes], name: str) -> None:
    """Read what the fuzzer makes up from files whole and cut short. Ours is every error but ``InputError``."""
    from sim.errors import InputError

    corpus = [piece for sample in samples for piece in (sample, sample[: len(sample) // 2], sample[:9], sample[1:])]
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
        atheris.Setup([sys.argv[0], *sys.argv[2:], str(seeds)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(*{"traces": traces, "weights": weights}[sys.argv[1]]())
