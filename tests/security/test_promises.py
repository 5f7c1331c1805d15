"""Every promise of SECURITY.md is named by a test, and every limit in its table is the one that the code has.

A test names what it shows with ``@pytest.mark.promise("a part of a sentence of SECURITY.md")``; for a limit it quotes
the first cell of its row, a colon, and the limit. The tests here show what no other file does.
"""

from __future__ import annotations

import ast
import base64
import gzip
import os
import pickle
import re
import socket
import sys
import tomllib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import CommandLine
from test_hostile_runs import SMALL

from calibrate.serve import client, http_answer, server_metrics
from sim import reading
from sim.errors import InputError, OutputError
from sim.results.run_directory.result_files import read_json
from sim.spec import scenario_file
from sim.spec.files import yaml_tree
from sim.spec.profile import load_profile
from sim.spec.scenario_file import load_scenario
from sim.spec.sections import laws
from sim.spec.sections.laws import EmpiricalTokens
from sim.spec.sections.trace_source import Trace
from sim.studies.fidelity import bench_files
from sim.studies.observe import engine_metrics, readings
from sim.traffic import lengths, popularity
from sim.traffic.lengths import read_counts
from sim.traffic.popularity import read_weights
from sim.traffic.tables import parquet, text_files
from sim.traffic.traces import data, formats, rows
from sim.traffic.traces.read import read_trace
from sim.training.files import safetensors_header
from sim.training.logs import training_log

ROOT = Path(__file__).parents[2]
ADVICE = (
    "A scenario may name any file you can read, as your own ones do.",
    "JSON takes up to about ten times its size in memory",
    "A server can still make a run slow",
)
"""What stands among the promises and is none: how a sentence begins."""


def promises(text: str) -> list[str]:
    """Return the sentences under "Promises", and the limits of tables as ``row: limit``."""
    section = re.sub(r"\*\*", "", text.partition("\n## Promises\n")[2].partition("\n## No promises")[0])
    found: list[str] = []
    for part in re.split(r"\n\s*\n|\n(?=- )", section):
        if part.lstrip().startswith("|"):
            for row in part.strip().splitlines()[2:]:
                what, limits, _ = (cell.strip() for cell in row.strip("|").split("|"))
                found += [f"{what}: {limit.strip()}" for limit in limits.split(";")]
        elif not part.lstrip().startswith("#"):
            sentences = re.split(r"(?<=[.!?]) (?=[A-Z`])", " ".join(part.removeprefix("- ").split()))
            found += [sentence for sentence in sentences if sentence]
    return found


def claims() -> dict[str, list[str]]:
    """Return what tests quote, and which tests."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for test in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(test, ast.FunctionDef):
                continue
            for mark in test.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    for quote in mark.args:
                        found.setdefault(ast.literal_eval(quote), []).append(f"{file.name}::{test.name}")
    return found


def test_every_promise_is_named_by_a_test() -> None:
    made = promises((ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(made) > 40
    named = claims()
    unnamed = [one for one in made if not one.startswith(ADVICE) and not any(quote in one for quote in named)]
    assert not unnamed, "no test names these promises"


def test_every_test_names_one_promise_that_is_made() -> None:
    made = promises((ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    for quote, tests in claims().items():
        assert len(quote) >= 14, tests
        assert len([one for one in made if quote in one]) == 1, f"{tests}: {quote}"


def test_the_parser_finds_sentences_bullets_and_rows() -> None:
    text = "\n## Promises\n\n**A is so.** And B\nis too.\n\n- C is. D `x`.\n- E.\n\n"
    text += "| a | b | c |\n|---|---|---|\n| r | 1; 2 | f |\n"
    assert promises(f"{text}\n## No promises\n\nF.\n") == [
        "A is so.",
        "And B is too.",
        "C is.",
        "D `x`.",
        "E.",
        "r: 1",
        "r: 2",
    ]


MIB = 1 << 20
LIMITS = {
    "scenario: 1 MB": yaml_tree.MAX_BYTES == 10**6,
    "scenario: 100,000 values and 4 million characters with aliases written out": (
        yaml_tree.MAX_NODES,
        yaml_tree.MAX_TEXT,
    )
    == (100_000, 4 * 10**6),
    "scenario: 50 levels": yaml_tree.MAX_DEPTH == 50,
    "scenario: 20 files that extend each other": scenario_file.MAX_CHAIN == 20,
    "row of a trace, unpacked: 4 MiB": reading.ROW_BYTES == 4 * MIB,
    "row of a trace, unpacked: 10,000 columns": text_files.MAX_COLUMNS == 10_000,
    "row of a trace, unpacked: blocks of rows end after 16 MiB": reading.BLOCK_BYTES == 16 * MIB,
    "requests of a trace: 50 million": data.MAX_REQUESTS == 50 * 10**6,
    "tokens of a request: 10 million, prompt and answer together": laws.MAX_TOKENS == 10**7,
    "name of an adapter; all names: 1,024 bytes": rows.MAX_NAME_BYTES == 1024,
    "name of an adapter; all names: 537 million letters": round(rows.MAX_NAMES_LETTERS / 1e6) == 537,
    "text in a cell of Parquet: 4,096 bytes": parquet.CELL_BYTES == 4096,
    "profile, manifest: 64 MiB": reading.PROFILE_BYTES == reading.MANIFEST_BYTES == 64 * MIB,
    "a point of a run: 32 MiB, each point once": reading.POINT_BYTES == 32 * MIB,
    "step record, unpacked: 256 MiB": reading.RECORD_BYTES == 256 * MIB,
    "tables of weights, counts, runs: 1 GiB": reading.TABLE_BYTES == 1024 * MIB,
    "tables of weights, counts, runs: 10 million weights, 50 million counts": (popularity.MAX_WEIGHTS, lengths.MAX_ROWS)
    == (10**7, 50 * 10**6),
    "safetensors header: 100 MB, and no more than the file has": safetensors_header.HEADER_LIMIT == 10**8,
    "training log: 64 MiB": training_log.LOG_LIMIT == 64 * MIB,
    "result of a benchmark: 64 MiB": bench_files.BENCH_BYTES == 64 * MIB,
    "saved metrics: 64 MiB": readings.PAGE_BYTES == 64 * MIB,
    "status line and headers; trailers: 64 KiB": http_answer.HEAD_BYTES == MIB // 16,
    "list of models; name of a model: 16 MiB": client.MODELS_BYTES == 16 * MIB,
    "list of models; name of a model: 1,024 characters": client.NAME_LETTERS == 1024,
    "metrics page; a line of it: 8 MiB": server_metrics.PAGE_BYTES == 8 * MIB,
    "metrics page; a line of it: 64 KiB": engine_metrics.LINE_LETTERS == MIB // 16,
    "streamed answer: 1 MiB, and 16 KiB for each token that was requested": (
        (client.ANSWER_BYTES, client.TOKEN_BYTES) == (MIB, MIB // 64)
    ),
    "event; part of an answer that is not parsed yet: 64 KiB": (
        client.EVENT_BYTES == client.PENDING_BYTES == MIB // 16
    ),
    "answer with an HTTP error: 64 KiB of it are kept": client.REFUSAL_BYTES == MIB // 16,
    "what the server says in messages and results: 300 characters, before escapes": client.WORDS == 300,
}
NO_NUMBER = {"text in a cell of Parquet: longer dictionaries and columns are refused before they are decoded"}


@pytest.mark.promise("Memory is bounded.")
def test_the_table_has_the_limits_of_the_code() -> None:
    made = promises((ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    table = {one for one in made if re.match(r"[^.(`]+: ", one) and not one.endswith(".")}
    assert table - NO_NUMBER == set(LIMITS)
    assert [row for row, true in LIMITS.items() if not true] == []


class Bomb:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.promise("Parquet is read by pyarrow 16 or newer, which loads no pickled types.")
def test_a_pickled_type_in_parquet_is_not_loaded(tmp_path: Path) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert "pyarrow>=16" in wanted
    hostile = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(tmp_path / "mark")),
    }
    columns = {"timestamp_s": [0.0, 1.0], "adapter_id": ["a", "b"], "input_tokens": [1, 1], "output_tokens": [1, 1]}
    table = pa.table(columns)
    for name in columns:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place).with_metadata(hostile), table.column(place))
    pq.write_table(table, tmp_path / "t.parquet")
    schema = base64.b64decode(pq.read_metadata(tmp_path / "t.parquet").metadata[b"ARROW:schema"])
    assert b"py_extension_type" in schema, "the pickles are there"
    assert len(read_trace(Trace(file=str(tmp_path / "t.parquet")))) == 2
    assert not (tmp_path / "mark").exists()


TRACE = "timestamp_s,adapter_id,input_tokens,output_tokens\n" + "".join(f"{i},a{i % 3},9,9\n" for i in range(60))
COMMANDS = (
    "run s.yaml --out run --jobs 1",
    "run s.yaml --out two --jobs 2 --backend local",
    "sweep s.yaml --over cache.gpu.slots=4,8 --out sweep --jobs 1",
    "plan s.yaml --minimize cache.gpu.slots=4..6 --out plan --jobs 1",
    "report run",
    "compare run two",
    "check s.yaml",
    "schema",
    "scenarios list",
    "scenarios copy quickstart",
    "trace t.csv",
    "cache t.csv --slots 1,2",
    "adapters fleet --example",
    "vet fleet",
    "--help",
)  # one line each, as they are typed


@pytest.mark.slow
@pytest.mark.promise("The only commands that use a network are those that were given an address")
def test_commands_without_an_address_use_no_network(
    loraplan: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the network was asked")

    (tmp_path / "s.yaml").write_text(SMALL)
    (tmp_path / "t.csv").write_text(TRACE)
    loraplan.headroom = True
    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for line in COMMANDS:
        assert loraplan(*line.split()).code == 0, line


PAGE = ("sim/ui", "sim/ui/simulating")
"""What listens on this machine: tests/ui/test_guard.py."""
NETWORK = {"asyncio", "distributed", "http", "ray", "requests", "socket", "ssl", "urllib"}


@pytest.mark.promise("The only commands that use a network are those that were given an address")
def test_only_backends_and_calibrate_serve_can_use_a_network() -> None:
    users = set()
    for file in (file for folder in ("sim", "reports", "calibrate") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] in NETWORK for name in names):
                users.add(file.parent.relative_to(ROOT).as_posix())
    assert users <= {*PAGE, "sim/studies/backends", "calibrate/serve", "calibrate/serve/observer"}
    assert len(users) >= 2


OPENED: list[str] = []
LISTENING = False


def listen(event: str, arguments: tuple[object, ...]) -> None:
    if LISTENING and event in ("open", "os.listdir", "os.scandir"):
        OPENED.append(str(arguments[0]))


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Collect the paths that are opened, by whatever in Python opens them."""
    global LISTENING
    if listen not in getattr(sys, "_loraplan_hooks", ()):
        sys.addaudithook(listen)  # hooks can't be removed: this one is silent between tests
        sys._loraplan_hooks = (listen,)  # type: ignore[attr-defined]
    OPENED.clear()
    LISTENING = True
    yield OPENED
    LISTENING = False


@pytest.mark.promise("A trace, a profile and a table are one file each and name no others.")
def test_reading_a_file_opens_no_other_of_the_folder(tmp_path: Path, opened: list[str]) -> None:
    other = tmp_path / "other.csv"
    other.write_text(TRACE)
    names = [str(other), "other.csv", "./other.csv", f"file://{other}", f"|cat {other}", f"@{other}"]
    lines = "".join(f'{number},"{name}",1,1\n' for number, name in enumerate(names))
    (tmp_path / "t.csv").write_text(TRACE.partition("\n")[0] + "\n" + lines)
    (tmp_path / "w.csv").write_text("".join(f"{name},1\n" for name in names))
    (tmp_path / "c.csv").write_text("n\n1\n2\n")
    (tmp_path / "p.json").write_bytes(next((ROOT / "scenarios" / "profiles").rglob("*.json")).read_bytes())
    for file, read in (
        ("t.csv", lambda path: read_trace(Trace(file=path))),
        ("w.csv", read_weights),
        ("c.csv", lambda path: read_counts(EmpiricalTokens(law="empirical", file=path, column="n"))),
        ("p.json", load_profile),
    ):
        opened.clear()
        read(str(tmp_path / file))
        mine = {path for path in opened if path.startswith(str(tmp_path)) or path.endswith("other.csv")}
        assert mine <= {str(tmp_path / file)}


@pytest.mark.promise("profile, manifest: 64 MiB")
def test_a_large_profile_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with (tmp_path / "p.json").open("wb") as out:
        out.truncate(reading.PROFILE_BYTES + 1)  # a file of holes
    with pytest.raises(InputError, match="larger than 64 MiB"):
        load_profile(str(tmp_path / "p.json"))


@pytest.mark.promise("result of a benchmark: 64 MiB", "saved metrics: 64 MiB")
def test_large_results_and_metrics_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as out:
        out.truncate(64 * MIB + 1)
    with pytest.raises(InputError, match="larger than 64 MiB"):
        bench_files.read_bench(tmp_path / "big.json")
    with pytest.raises(InputError, match="larger than 64 MiB"):
        readings.page_of_file(tmp_path / "big.json")


@pytest.mark.promise("tables of weights, counts, runs: 1 GiB")
def test_a_large_table_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as out:
        out.write(b"n\n1\n")
        out.truncate(reading.TABLE_BYTES + 1)
    with pytest.raises(InputError, match="larger than 1024 MiB"):
        read_weights(str(tmp_path / "t.csv"))
    with pytest.raises(InputError, match="larger than 1024 MiB"):
        read_counts(EmpiricalTokens(law="empirical", file=str(tmp_path / "t.csv"), column="n"))


@pytest.mark.promise("requests of a trace: 50 million")
def test_rows_of_a_trace_are_counted_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_REQUESTS", 50)
    (tmp_path / "t.csv").write_text(TRACE)
    with pytest.raises(InputError, match="too many requests"):
        read_trace(Trace(file=str(tmp_path / "t.csv")))


@pytest.mark.promise(
    "A packed trace is read block by block, so one that unpacks to terabytes takes time but not memory."
)
def test_a_packed_trace_takes_a_blocks_memory(tmp_path: Path) -> None:
    """200 MB of text with few requests: rows of 100 kB, nearly all of it spaces."""
    head = TRACE.partition("\n")[0].encode() + b"\n"
    row = b"0,a,1,1" + b" " * 100_000 + b"\n"
    with gzip.open(tmp_path / "t.csv.gz", "wb", compresslevel=1) as out:
        out.write(head)
        for _ in range(40):
            out.write(row * 50)
    assert (tmp_path / "t.csv.gz").stat().st_size < 2 * MIB
    tracemalloc.start()
    try:
        assert len(read_trace(Trace(file=str(tmp_path / "t.csv.gz")))) == 2000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * reading.BLOCK_BYTES, "less than half of what it unpacks to"


@pytest.mark.promise("an error message may quote 80 characters of a file that the scenario chose")
def test_an_error_quotes_80_characters_of_a_file_at_most(tmp_path: Path) -> None:
    secret = "s3cret" * 100
    (tmp_path / "secret").write_text(f"{secret}\n{secret}\n")
    texts = (
        SMALL.replace("requests: 50, arrivals: {process: poisson, rate: 5/s}", "trace: {file: secret}"),
        SMALL.replace("requests: 50,", "requests: 50, popularity: {law: weights, file: secret},"),
        SMALL.replace("requests: 50,", "requests: 50, tokens: {prompt: {law: empirical, file: secret, column: n}},"),
        SMALL + "fleet: {profile: ./secret}\n",
        "extends: secret\n" + SMALL,
    )
    from sim.world.build import build_world

    for text in texts:
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(InputError) as caught:
            build_world(load_scenario(str(tmp_path / "s.yaml")).scenario)
        quoted = max(map(len, re.findall(r"(?:s3cret|secre|3cret|s3cr)[s3cret…]*", str(caught.value))), default=0)
        assert quoted <= 80, str(caught.value)


@pytest.mark.promise("text with more brackets than 1 in 8 bytes is refused before it is parsed")
def test_brackets_are_counted_before_json_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.loads", lambda _: pytest.fail("it was parsed"))
    (tmp_path / "m.json").write_text("[" + "[]," * 5000 + "1]")
    with pytest.raises(OutputError, match="too many brackets"):
        read_json(tmp_path / "m.json")
