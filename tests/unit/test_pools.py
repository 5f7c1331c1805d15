"""Pools: a made-up cluster loses tasks, refuses software and lacks files; the study is notified, or unaffected."""

from __future__ import annotations

import pickle
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sim.errors import InputError, LoraplanError, TraceError
from sim.spec.scenario_file import load_scenario
from sim.studies.backends import backend_choice, cluster
from sim.studies.backends.backend_choice import BackendChoice, choose_backend, open_pool
from sim.studies.backends.cluster import (
    FEWEST,
    Cluster,
    ClusterGone,
    Dask,
    Ray,
    lacks_loraplan,
    run_on_worker,
    software,
)
from sim.studies.backends.pool import Local
from sim.studies.execution import Execution
from sim.studies.plan.study import make_plan
from sim.studies.sweep import run_study


class Died(Exception):
    """A task died with its workers."""


class Begun(Future[Any]):
    """A call that runs when it is waited for."""

    def __init__(self, run: Callable[[], Any]) -> None:
        super().__init__()
        self.run = run


@pytest.fixture(autouse=True)
def last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls under way, the one that began last ends first."""

    def wait(under_way: set[Begun], *how: object) -> tuple[set[Begun], set[Begun]]:
        last = max(under_way, key=lambda begun: begun.number)
        try:
            last.set_result(last.run())
        except Exception as error:
            last.set_exception(error)
        return {last}, under_way - {last}

    monkeypatch.setattr(cluster, "wait", wait)


class MadeUp:
    """An executor in this process, through a pickle there and back.

    :param lost: submissions that die with their worker, by number.
    :param missing: a file that is not there while a call runs.
    """

    name = "the made-up cluster"
    lost, gone = (Died,), (ConnectionError,)
    forgotten: tuple[int, ...] = ()

    def __init__(self, lost: tuple[int, ...] = (), missing: Path | None = None, cores: int = 2) -> None:
        self._lost, self._missing, self._cores = lost, missing, cores
        self.submitted = self.ended = self.most = 0
        self.closed = False

    def cores(self) -> int:
        return self._cores

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Begun:
        begun = Begun(partial(self._run, self.submitted, pickle.dumps((call, arguments))))
        begun.number = self.submitted
        self.submitted += 1
        self.most = max(self.most, self.submitted - self.ended)
        return begun

    def _run(self, number: int, sent: bytes) -> Any:
        self.ended += 1
        if number in self._lost:
            raise Died
        if number in self.forgotten:  # as Dask's executor does with a pair whose worker died
            _, _, _ = (0, None)  # type: ignore[misc]
        aside = None if self._missing is None else self._missing.rename(self._missing.with_suffix(".aside"))
        try:
            call, arguments = pickle.loads(sent)
            return pickle.loads(pickle.dumps(call(*arguments)))
        finally:
            if aside is not None and self._missing is not None:
                aside.rename(self._missing)

    def close(self) -> None:
        self.closed = True


def twice(number: int) -> int:
    return 2 * number


def fails(number: int) -> int:
    raise TraceError("a bad row", file="t.csv", line=3, got=number)


class NoPickle(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)

    def __reduce__(self) -> str:
        """Refuse, whoever asks: distributed teaches pickle ways round other obstacles."""
        raise TypeError("no pickle")


def fails_oddly() -> None:
    raise NoPickle("od", "d")


@pytest.mark.parametrize(
    ("texts", "meant"),
    [
        ([], BackendChoice("local")),
        (["local"], BackendChoice("local")),
        (["dask"], BackendChoice("dask")),
        (["dask", "tcp://a:8786"], BackendChoice("dask", "tcp://a:8786")),
        (["a:8786", "dask"], BackendChoice("dask", "tcp://a:8786")),
        (["tcp://a:8786"], BackendChoice("dask", "tcp://a:8786")),
        (["run/scheduler.json"], BackendChoice("dask", "run/scheduler.json")),
        (["ray://a:10001"], BackendChoice("ray", "ray://a:10001")),
        (["ray", "a:6379"], BackendChoice("ray", "a:6379")),
        (["ray", "auto"], BackendChoice("ray", "auto")),
    ],
)
def test_a_backend_and_an_address_tell_themselves_apart(texts: list[str], meant: BackendChoice) -> None:
    assert choose_backend(texts) == meant


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (
            ["dsk"],
            "--backend: neither a backend nor an address (got dsk, allowed: local, dask, ray, or an address such "
            "as tcp://host:8786); did you mean 'dask'?",
        ),
        (["a:8786"], "--address: the kind of cluster at this address is unknown (got a:8786); add"),
        (["auto"], "--address: the kind of cluster at this address is unknown"),
        (["http://a:1"], "--address: unknown kind of address (got http://a:1, allowed: tcp://"),
        (["dask", "ray://a:1"], "--address: not an address for --backend dask (got ray://a:1)"),
        (["local", "a:1"], "--address: not an address for --backend local"),
        (["dask", "auto"], "--address: not an address for --backend dask"),
        (["dask", "ray"], "--backend: given twice (got dask and ray)"),
        (["tcp://a:1", "tcp://b:1"], "--address: given twice"),
    ],
)
def test_what_is_neither_or_both_is_refused(texts: list[str], says: str) -> None:
    with pytest.raises(InputError) as refused:
        choose_backend(texts)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(("backend", "module"), [("dask", "distributed"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, backend: str, module: str) -> None:
    monkeypatch.setattr(backend_choice, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused, open_pool(BackendChoice(backend)):
        pass
    assert str(refused.value) == (
        f"--backend: the package {module} is missing (got {backend}); "
        f"run pip install -e '.[{backend}]' in your clone of loraplan"
    )


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(backend_choice, "find_spec", lambda name: object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and no listen: a connection is refused
        there = address.format(taken.getsockname()[1])
        with pytest.raises(InputError) as refused, open_pool(choose_backend([there])):
            pass
    assert str(refused.value) == f"--address: nothing answers here (got {there}); Connection refused"


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2"])
def test_an_address_where_something_else_listens_is_one_line(monkeypatch: pytest.MonkeyPatch, greeting: bytes) -> None:
    monkeypatch.setattr(backend_choice, "find_spec", lambda name: object())
    monkeypatch.setattr(backend_choice, "_ANSWER_S", 0.2)
    with socket.socket() as other, ThreadPoolExecutor() as thread:
        other.bind(("127.0.0.1", 0))
        other.listen()
        called = thread.submit(other.accept)
        there = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        called.add_done_callback(lambda accepted: accepted.result()[0].sendall(greeting))
        with pytest.raises(InputError) as refused, open_pool(choose_backend([there])):
            pass
        called.result()[0].close()
    assert str(refused.value) == (
        f"--address: the server at this address is no Dask scheduler (got {there}, allowed: such as tcp://host:8786)"
    )


def test_a_schedulers_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError) as refused:
        Dask.at("none/scheduler.json", lambda text: None)
    assert str(refused.value) == (
        "--address: no such file (got none/scheduler.json); dask scheduler --scheduler-file writes it"
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ConnectionError("timeout\nand more"),
            "--address: no Ray cluster answers here (got ray://a:1, allowed: such "
            "as ray://host:10001; on one of its machines auto); timeout; a cluster that was started with a token wants "
            "RAY_AUTH_MODE=token here, too",
        ),
        (
            ImportError("no grpc"),
            "--address: an address ray://… needs Ray's client (got ray://a:1); pip install 'ray[client]' (no grpc)",
        ),
    ],
)
def test_a_ray_cluster_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def init(**options: Any) -> None:
        raise error

    for key in cluster.SET_BEFORE_IMPORT:
        monkeypatch.setenv(key, "")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(InputError) as refused:
        Ray.at("ray://a:1", lambda text: None)
    assert str(refused.value) == says
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    with pytest.raises(InputError, match="--backend: this process uses Ray already"):
        Ray.at("ray://a:1", lambda text: None)


def test_a_worker_without_loraplan_is_named() -> None:
    lacking = RuntimeError("a task failed")
    lacking.__cause__ = ModuleNotFoundError("No module named 'sim'")
    assert lacks_loraplan(lacking)
    assert not lacks_loraplan(ModuleNotFoundError("No module named 'simplejson'"))
    futures = object.__new__(Dask)
    futures.name = "the Dask cluster"
    futures._known = set()
    futures._client = SimpleNamespace(run=lambda call, *rest, **more: {"tcp://a:1": False, "tcp://b:1": True})
    with pytest.raises(InputError) as refused:
        futures.refuse_without_loraplan({"tcp://a:1", "tcp://b:1"})
    assert str(refused.value) == (
        "--backend: a worker of the Dask cluster has no loraplan; install the same versions on every worker"
    )


def test_an_address_without_a_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_choice, "find_spec", lambda name: object())
    with (
        pytest.raises(InputError, match="--address: an address needs host and port"),
        open_pool(BackendChoice("dask", "tcp://a")),
    ):
        pass


def test_no_worker_is_refused_whatever_the_backend() -> None:
    with pytest.raises(InputError, match="--jobs: not a number of workers"), open_pool(BackendChoice(), 0):
        pass


def test_a_pool_by_default_is_this_machine() -> None:
    with open_pool(BackendChoice(), 1) as pool:
        assert not pool.away
        assert list(pool.unordered(twice, [(1,), (2,)])) == [2, 4]


def test_results_come_as_they_end_and_arguments_are_taken_as_there_is_room() -> None:
    taken = []

    def arguments() -> Iterator[tuple[int]]:
        for number in range(100):
            taken.append(number)
            yield (number,)

    futures = MadeUp()
    results = Cluster(futures).unordered(twice, arguments())
    assert next(results) == 2 * (FEWEST - 1)  # the last that was begun
    assert len(taken) == FEWEST
    assert sorted([2 * (FEWEST - 1), *results]) == [2 * number for number in range(100)]
    assert futures.most == FEWEST


def test_jobs_bound_what_is_under_way_on_a_cluster_of_others() -> None:
    futures = MadeUp(cores=500)
    list(Cluster(futures, jobs=3).unordered(twice, [(number,) for number in range(20)]))
    assert futures.most == 3


def test_a_lost_task_costs_itself_only() -> None:
    found: list[int] = []
    with pytest.raises(LoraplanError, match=r"2 tasks died with every worker that tried.*all other results are kept"):
        found.extend(Cluster(MadeUp(lost=(3, 17))).unordered(twice, [(number,) for number in range(30)]))
    assert sorted(found) == [2 * number for number in range(30) if number not in (3, 17)]


def test_a_result_that_died_with_its_worker_is_computed_again() -> None:
    futures = MadeUp()
    futures.forgotten = (3, 17)
    found = list(Cluster(futures).unordered(twice, [(number,) for number in range(30)]))
    assert sorted(found) == [2 * number for number in range(30)]
    assert futures.submitted == 32


def test_an_error_of_a_task_comes_home_as_it_is() -> None:
    with pytest.raises(TraceError) as raised:
        list(Cluster(MadeUp()).unordered(fails, [(7,)]))
    assert str(raised.value) == "t.csv:3: a bad row (got 7)"
    assert "in fails" in raised.value.__notes__[0]
    with pytest.raises(LoraplanError, match="NoPickle: odd"):
        list(Cluster(MadeUp()).unordered(fails_oddly, [()]))


def test_a_worker_with_other_software_refuses() -> None:
    assert run_on_worker(software(), twice, (4,)) == (8, None)
    _, refused = run_on_worker({**software(), "loraplan": "0.0.1+abc", "numpy": "1.0"}, twice, (4,))
    assert isinstance(refused, InputError)
    assert "has other versions, which may give other numbers (got loraplan " in str(refused)
    assert "allowed: loraplan 0.0.1+abc, numpy 1.0); install the same versions on every worker" in str(refused)


def test_a_cluster_without_workers_is_waited_for_and_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.studies.backends.cluster.PATIENCE_S", -1.0)
    notes: list[str] = []
    list(Cluster(MadeUp(cores=0), on_note=notes.append).unordered(twice, [(number,) for number in range(40)]))
    assert notes == ["note: the made-up cluster has no workers; waiting for some"]


def test_a_cluster_that_is_gone_says_that_points_are_kept() -> None:
    assert str(ClusterGone("the Dask cluster at tcp://a:1")) == (
        "the Dask cluster at tcp://a:1 is gone; finished results are kept: run the same command to resume"
    )


GENERATED = """  requests: 400
  arrivals: {process: poisson, rate: 20/s}
  popularity: {law: weights, file: weights.csv}"""
LONGER = ", half_width: 20%, max_requests: 3200"
WEIGHTS = f"""
schema_version: 1
name: weights
workload:
{GENERATED}
adapters: {{count: 40, size: 50 MB}}
fleet: {{engine: fixed, service: {{law: exponential, mean: 10 ms}}}}
cache: {{gpu: {{size: 500 MB}}}}
storage: {{loaders: 1, load: {{law: uniform, low: 20 ms, high: 50 ms}}}}
slo: {{e2e_p99: 1 s}}
run: {{seed: 1, replications: 2{LONGER}}}
sweep: {{cache.gpu.size: [500 MB, 1 GB, 1500 MB]}}
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights.csv").write_text("".join(f"{1 / (number + 1):.4f}\n" for number in range(40)))
    (tmp_path / "weights.yaml").write_text(WEIGHTS)
    return tmp_path / "weights.yaml"


def test_a_trace_travels_with_its_points(tmp_path: Path) -> None:
    rows = [f"{number * 0.05:.2f},a{number * number % 31},5,5" for number in range(300)]
    (tmp_path / "t.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n" + "\n".join(rows))
    (tmp_path / "trace.yaml").write_text(WEIGHTS.replace(GENERATED, "  trace: {file: t.csv}").replace(LONGER, ""))
    loaded = load_scenario(str(tmp_path / "trace.yaml"))
    sets = [{"cache.gpu.size": size} for size in ("500 MB", "1 GB")]
    run_study(loaded, sets, tmp_path / "here", Execution(Local(1)))
    run_study(loaded, sets, tmp_path / "there", Execution(Cluster(MadeUp(missing=tmp_path / "t.csv"))))
    assert tables(tmp_path / "there") == tables(tmp_path / "here")


def tables(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("points.csv", "summary.json", "requests.parquet")]


def test_workers_need_none_of_the_files_and_tables_are_the_same(weights: Path, tmp_path: Path) -> None:
    loaded = load_scenario(str(weights))
    sets = [{"cache.gpu.size": size} for size in ("500 MB", "1 GB", "1500 MB")]
    run_study(loaded, sets, tmp_path / "here", Execution(Local(1)))
    futures = MadeUp(missing=tmp_path / "weights.csv")
    run_study(loaded, sets, tmp_path / "there", Execution(Cluster(futures)))
    assert tables(tmp_path / "there") == tables(tmp_path / "here")
    assert futures.submitted > len(sets), "no run was made longer: the test shows nothing"


def test_a_point_that_was_lost_is_all_that_the_next_run_simulates(weights: Path, tmp_path: Path) -> None:
    loaded = load_scenario(str(weights), ["run.half_width=null"])
    sets = [{"cache.gpu.size": f"{size} MB"} for size in range(500, 1500, 100)]
    with pytest.raises(LoraplanError, match="a task died"):
        run_study(loaded, sets, tmp_path / "out", Execution(Cluster(MadeUp(lost=(4,)))))
    futures = MadeUp()
    finished = run_study(loaded, sets, tmp_path / "out", Execution(Cluster(futures)))
    assert finished.reused == len(sets) - 1
    assert futures.submitted == loaded.scenario.run.replications  # one point is spread over its replications
    run_study(loaded, sets, tmp_path / "here", Execution(Local(1)))
    assert tables(tmp_path / "out") == tables(tmp_path / "here")


def test_a_plan_finds_the_same_on_a_cluster(weights: Path, tmp_path: Path) -> None:
    values = ["run.half_width=null", "plan={minimize: cache.gpu.size, range: [500 MB, 1500 MB], step: 250 MB}"]
    loaded = load_scenario(str(weights), values)
    here = make_plan(loaded, tmp_path / "here", Execution(Local(1)), and_what_if=True)
    pool = Cluster(MadeUp(missing=tmp_path / "weights.csv"))
    there = make_plan(loaded, tmp_path / "there", Execution(pool), and_what_if=True)
    assert there.record == here.record
    assert tables(tmp_path / "there") == tables(tmp_path / "here")


def test_the_made_up_cluster_is_closed_with_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    futures = MadeUp()
    monkeypatch.setattr(backend_choice, "find_spec", lambda name: object())
    monkeypatch.setattr(Dask, "started", lambda jobs: futures)
    with pytest.raises(KeyboardInterrupt), open_pool(BackendChoice("dask")):
        raise KeyboardInterrupt
    assert futures.closed
