"""VTC's entry of the gallery: two runs within their bars, the fit of the anchor, and folders that can't be used."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sim.errors import InputError
from validation.gallery import vtc

TABLE = "run,model,gpu,scheduling,kv_pool_tokens,mode,tenant_rates_per_s,requests_per_s\n"
RUN = "one,Llama-7B,A10G,fcfs,10000,uniform,1,1.5\n"
REQUESTS = "arrival_s,tenant,prompt_tokens,output_tokens,first_token_s,latency_s\n0.5,0,256,256,0.1,9\n"


@pytest.mark.skipif(not vtc.DATA.exists(), reason="the published runs are not here")
def test_weights_and_eight_tenants_come_within_the_bars_and_the_anchor_gives_the_fitted_numbers() -> None:
    names = ("wvtc_overload-weighted", "vtc_overload-multi")
    rows = [row for name in names for row in vtc.predict(vtc.DATA / f"{name}.csv.gz")]
    assert [row.name for row in rows] == list(names)
    assert len(rows[1].published) == 3 + 8
    assert all(bar.met for bar in vtc.bars(rows))
    (anchor,) = vtc.read_runs(vtc.DATA / f"{vtc.ANCHORS[vtc.SMALL]}.csv.gz")
    assert vtc.fit(anchor) == pytest.approx(vtc.FITTED[vtc.SMALL], rel=1e-3)


@pytest.mark.parametrize(
    ("table", "requests", "words"),
    [
        ("", REQUESTS, "there is no table of the runs"),
        (TABLE + RUN.replace("A10G", "T4"), REQUESTS, "vtc_runs.csv:2: gpu: costs are not known.*got Llama-7B on T4"),
        (TABLE + RUN.replace("fcfs", "rpm"), REQUESTS, "scheduling: not a value .got rpm, allowed: fcfs, vtc, vtc w"),
        (TABLE + RUN.replace("one", "two"), REQUESTS, "no run of the table has its file here"),
        (TABLE + RUN, REQUESTS.replace("tenant", "who"), "columns are missing"),
        (TABLE + RUN, REQUESTS.replace("0.5,0", "0.5,a"), "one.csv.gz:2: tenant: not a value .got a"),
        (TABLE + RUN, REQUESTS.splitlines()[0], "one.csv.gz: the table has no rows"),
    ],
)
def test_a_folder_that_cant_be_used_says_why(tmp_path: Path, table: str, requests: str, words: str) -> None:
    if table:
        (tmp_path / "vtc_runs.csv").write_text(table)
    (tmp_path / "one.csv.gz").write_bytes(gzip.compress(requests.encode()))
    with pytest.raises(InputError, match=words):
        vtc.predict(tmp_path)
