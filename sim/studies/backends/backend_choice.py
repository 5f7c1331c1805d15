"""Turns ``--backend`` and ``--address`` into a pool that is open while a study runs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from sim.errors import InputError, did_you_mean, install_hint
from sim.studies.backends.pool import Local, Pool, cores

BACKENDS = ("local", "dask", "ray")
_SCHEMES = {"tcp": "dask", "tls": "dask", "ws": "dask", "wss": "dask", "ucx": "dask", "ray": "ray"}
_MODULES = {"dask": "distributed", "ray": "ray"}
_ANSWER_S = 5.0
_LONG_GREETING = 1 << 20


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """The backend of a study.

    :ivar address: of a running cluster; None: one is started for the study and stopped after it.
    """

    backend: str = "local"
    address: str | None = None


def choose_backend(texts: Sequence[str]) -> BackendChoice:
    """Return the backend from the values of ``--backend`` and ``--address``, in any order and under either name.

    :raises InputError: if they contradict each other, or are neither a backend nor an address.
    """
    backends = [text for text in texts if text in BACKENDS]
    addresses = [text for text in texts if text not in BACKENDS]
    for name, values in (("--backend", backends), ("--address", addresses)):
        if len(set(values)) > 1:
            raise InputError("given twice", key=name, got=" and ".join(values), hint="a study runs in one place")
    backend = backends[0] if backends else None
    if not addresses:
        return BackendChoice(backend or "local")
    address = addresses[0]
    if ":" not in address and not address.endswith(".json") and address != "auto":
        raise InputError(
            "neither a backend nor an address",
            key="--backend",
            got=address,
            allowed=f"{', '.join(BACKENDS)}, or an address such as tcp://host:8786",
            hint=did_you_mean(address, BACKENDS),
        )
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme and scheme not in _SCHEMES:
        raise InputError(
            "unknown kind of address", key="--address", got=address, allowed="tcp://… or tls://… (Dask), ray://… (Ray)"
        )
    meant = _SCHEMES.get(scheme) or ("dask" if address.endswith(".json") else backend)
    if meant is None:
        raise InputError(
            "the kind of cluster at this address is unknown",
            key="--address",
            got=address,
            hint="add --backend dask or --backend ray",
        )
    if backend not in (None, meant) or meant == "local" or (meant == "dask" and address == "auto"):
        raise InputError(f"not an address for --backend {backend or meant}", key="--address", got=address)
    if meant == "dask" and not scheme and not address.endswith(".json"):
        address = f"tcp://{address}"
    return BackendChoice(meant, address)


@contextmanager
def open_pool(
    where: BackendChoice, jobs: int = -1, on_note: Callable[[str], None] = lambda text: None
) -> Iterator[Pool]:
    """Open a pool, and stop afterwards what was started for it. A cluster that was running before stays.

    :param jobs: worker processes, or tasks at a time on a running cluster; -1: as many as there are cores.
    :param on_note: called with notes for the user.
    :raises InputError: if the package is missing, or nothing answers at the address.
    """
    if not isinstance(jobs, int) or (jobs < 1 and jobs != -1):
        raise InputError("not a number of workers", key="--jobs", got=jobs, allowed="-1, or 1 and more")
    if where.backend == "local":
        yield Local(jobs)
        return
    if find_spec(_MODULES[where.backend]) is None:
        raise InputError(
            f"the package {_MODULES[where.backend]} is missing",
            key="--backend",
            got=where.backend,
            hint=install_hint(where.backend),
        )
    from sim.studies.backends import cluster

    kind = cluster.Dask if where.backend == "dask" else cluster.Ray
    if where.address is None:
        executor, jobs = kind.started(cores(jobs)), -1
    else:
        _knock(where.address)
        executor = kind.at(where.address, on_note)
    try:
        yield cluster.Cluster(executor, jobs, on_note)
    finally:
        executor.close()


def _knock(address: str) -> None:
    """Refuse an address without a server: Ray would try for half a minute, Dask for ever."""
    if ":" not in address:
        return
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise InputError(
            "an address needs host and port",
            key="--address",
            got=address,
            allowed="such as tcp://host:8786 or ray://host:10001",
        )
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S) as line:
            greeting = line.recv(8, socket.MSG_WAITALL) if parts.scheme == "tcp" else None
    except TimeoutError:
        greeting = b""
    except OSError as error:
        hint = str(error.strerror or error)
        raise InputError("nothing answers here", key="--address", got=address, hint=hint) from None
    # Dask's scheduler sends first: the length of its message, in 8 bytes, little-endian.
    if greeting is not None and not 0 < int.from_bytes(greeting, "little") < _LONG_GREETING:
        problem = "the server at this address is no Dask scheduler"
        raise InputError(problem, key="--address", got=address, allowed="such as tcp://host:8786")
