"""Traces with cells and bytes replaced, read by the commands that take one."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import strategies as st

from validation.fuzz.cases import Case
from validation.fuzz.of_scenarios import SMALL

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from broken_traces import broken

LOG_OPTIONS = (
    ["--columns", "adapter=path,input=in,output=out,duration=rt", "--adapter-from", "/lora/([^/]+)/"],
    ["--columns", "input=none,output=none", "--base-model", "mail"],
    ["--columns", "unit=ms"],
    ["--adapter-from", "."],
    ["--format", "log"],
)


@st.composite
def trace_cases(draw: st.DrawFn) -> Case:
    """A trace, described, replayed or simulated."""
    files: dict[str, bytes | None] = {"t": draw(broken())}
    more = draw(st.sampled_from(([], [], ["--skip-bad"])))
    log = draw(st.sampled_from(([], [], *LOG_OPTIONS)))
    command = draw(st.sampled_from(("trace", "trace", "cache", "cache", "convert", "check", "run")))
    if command == "trace":
        lines = [
            [
                "trace",
                "t",
                "--json",
                *more,
                *log,
                *draw(st.sampled_from(([], ["--fit", "50%"], ["--fit", "0"], ["--requests", "2"]))),
            ]
        ]
    elif command == "cache":
        size = draw(
            st.sampled_from(
                (["--adapter-size", "1 kB"], [], ["--slots", "1,2,2"], ["--capacity", "1kB,3000 B"], ["--slots", "0"])
            )
        )
        policy = draw(st.sampled_from(([], ["--policy", "lru,fifo"], ["--policy", "belady,s3-fifo,random,gdsf"])))
        lines = [["cache", "t", "--json", *size, *policy, *more]]
    elif command == "convert":
        name = draw(st.sampled_from(("c.csv", "c.parquet", "c.csv.gz", "c")))
        lines = [["trace", "t", "--out", name, *more], ["trace", name, "--json"]]
    else:
        rows = draw(
            st.sampled_from(("", ", skip_bad: true", ", rate_scale: 2", ", population_scale: 0.5", ", offset: 1 s"))
        )
        files["s.yaml"] = SMALL.replace(
            b"  arrivals: {process: poisson, rate: 8/s}\n  popularity: {law: zipf, exponent: 0.9}\n"
            b"  tokens: {prompt: {law: fixed, value: 50}, output: {law: fixed, value: 10}}\n",
            f"  trace: {{file: t{rows}}}\n".encode(),
        ).replace(b"adapters: {count: 6, rank: 8}", b"adapters: {rank: 8}")
        lines = [
            ["check", "s.yaml"] if command == "check" else ["run", "s.yaml", "--json", "--jobs", "1", "--out", "out"]
        ]
    return Case(files, lines)
