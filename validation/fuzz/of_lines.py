"""Command lines put together from what the application itself says it takes, with values right and wrong."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import typer
from hypothesis import strategies as st

from sim.cli import app
from validation.fuzz.cases import Case
from validation.fuzz.of_scenarios import SMALL

_TRACE = b"timestamp_s,adapter_id,input_tokens,output_tokens\n0,a,5,5\n1,b,9,2\n2,a,5,5\n"
_FILES: dict[str, bytes | None] = {
    "small.yaml": SMALL,
    "t.csv": _TRACE,
    "empty": b"",
    "folder": None,
    "bad.yaml": b"a: [",
    "j.json": b"{}",
    "runs/x/y": b"1",
}
_WORDS = (
    "small.yaml",
    "small.yaml",
    "t.csv",
    "t.csv",
    "quickstart-x",
    "nowhere",
    "empty",
    "folder",
    "bad.yaml",
    "j.json",
    "",
    "-",
    ".",
    "/",
    "/dev/null",
    "\x1b[31m",
    "é\udce9",
    "a" * 300,
    "0",
    "-1",
    "1",
    "2",
    "1e9",
    "nan",
    "lru",
    "lru,fifo",
    "lru,,x",
    "50%",
    "1 kB,2 kB",
    "vllm-0.32",
    "tiny",
    "runs/x",
    "out",
    "new.csv",
    "new.parquet",
    "--",
    "--json",
    "[bold]",
    "auto",
    "cache.gpu.slots=2",
    "cache.gpu.slots=1,2",
    "cache.gpu.slots=1..3",
    "cache.gpu.slots=3..1",
    "cache.gpu.slots=1..9:0",
    "workload.arrivals.rate=1/s..4/s:1/s",
    "=",
    "a=b",
    "x.y=",
    "workload.requests=5",
    "run.replications=1",
    "adapters.mix=[{share: 1, kind: full}]",
    "fleet.full_models={serve: swap}",
    "adapters.base_quantization=nf4",
    "fleet.replicas=1..2",
    "plan.values=[1]",
    "sweep.x=1",
    "sweep={}",
    "slo={}",
    "faults=[{}]",
    "rollouts=[{strategy: new-name, at: 1 s, require: vet}]",
    "name=../x",
    "small_rank=3",
    "small_rank=x",
    "run.seed=" + "9" * 5000,
)
_BACKENDS = (
    "local",
    "dsk",
    "tcp://127.0.0.1:1",
    "ray://127.0.0.1:1",
    "tcp://[::1]:1",
    "tcp://",
    "a:b:c",
    "http://x",
    "",
    "127.0.0.1:1",
)
_NEVER = ("calibrate serve", "mcp", "ui")
"""Start a server."""
_MEASURES = ("calibrate steps", "calibrate loads", "calibrate all")
"""Take minutes where their device exists."""


@lru_cache(maxsize=1)
def commands() -> dict[str, list[Any]]:
    """Return the parameters of every command by its words."""
    found: dict[str, list[Any]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        for name, below in getattr(command, "commands", {}).items():
            walk(below, (*words, name))
        if not hasattr(command, "commands"):
            found[" ".join(words)] = list(command.params)

    walk(typer.main.get_command(app), ())
    return {name: params for name, params in found.items() if name not in _NEVER}


@st.composite
def line_cases(draw: st.DrawFn) -> Case:
    """One command line."""
    name = draw(st.sampled_from(sorted(commands())))
    line = name.split()
    params = commands()[name]
    for param in params:
        if not param.opts[0].startswith("-"):
            for _ in range(draw(st.sampled_from((1, 1, 1, 1, 1, 0, 2)))):
                line.append(draw(st.sampled_from(_WORDS)))
    options = [param for param in params if param.opts[0].startswith("-") and param.name != "help"]
    for param in draw(st.lists(st.sampled_from(options), max_size=4)) if options else ():
        option = draw(st.sampled_from([*param.opts, *param.secondary_opts]))
        if getattr(param, "is_flag", False):
            line.append(option)
        elif option in ("--backend", "--address") and name not in _MEASURES:
            line += [option, draw(st.sampled_from(_BACKENDS))]
        elif option == "--jobs":
            line += [option, draw(st.sampled_from(("1", "0", "-2", "x", "")))]
        else:
            line += [option, draw(st.sampled_from(_WORDS))]
    if draw(st.integers(0, 19)) == 0:
        line.append(draw(st.sampled_from(("--nope", "--jsn", "-x", "--help", "--set"))))
    if name in _MEASURES:
        line += ["--device", "nowhere"]
    elif name in ("run", "sweep", "plan") and "--jobs" not in line:
        line += ["--jobs", "1"]
    return Case(dict(_FILES), [line])
