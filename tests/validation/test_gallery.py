"""The gallery's programs, S-LoRA's and VTC's entries among them: what they print, refuse and return."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from sim.errors import InputError
from validation.gallery import __main__ as gallery
from validation.gallery import page, vtc
from validation.gallery.__main__ import main
from validation.gallery.entry import Bar, Entry, Row, Source
from validation.gallery.sglang_17913 import PUBLISHED, SOURCE, predict
from validation.gallery.slora import ANCHORS, MEASURED, RANK_RUN, SETTINGS, T1, moved

ROWS = [
    Row("made-up", "anchored", {"ttft_s": 1.0}, {"ttft_s": 1.0}, anchor=True),
    Row("made-up", "judged", {"ttft_s": 2.0}, {"ttft_s": 1.5}, band={"ttft_s": (1.0, 1.8)}),
]


def made_up(limit: float) -> Source:
    def bars(rows: Sequence[Row]) -> list[Bar]:
        assert [row.name for row in rows] == ["judged"], "anchors are not judged"
        return [Bar("error", 0.25, limit)]

    entry = Entry("made-up", "A made-up result", "nobody", "none", "none", bars)
    return Source([entry], lambda path: ROWS)


@pytest.mark.parametrize(("limit", "code", "word"), [(0.3, 0, "met   "), (0.2, 1, "MISSED")])
def test_a_missed_bar_is_the_exit_code_and_stays_on_the_page(
    limit: float,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source = made_up(limit)
    monkeypatch.setattr(gallery, "SOURCES", {"vtc": "vtc"})
    monkeypatch.setattr(gallery, "source_of", lambda name: source)
    assert gallery.main([]) == code
    assert f"{word} error: 0.25" in capsys.readouterr().out
    page.write({"vtc": source}, {"vtc": ROWS}, tmp_path / "gallery.md", tmp_path)
    text = (tmp_path / "gallery.md").read_text(encoding="utf-8")
    assert f"| [A made-up result](#a-made-up-result) | 1, 25 % | {1 - code} of 1 | `vtc` |" in text
    assert f"- **{word.capitalize().strip()}**: error: 25 % (at most {limit * 100:g} %)" in text
    assert "| judged | 1.5 [1 to 1.8] (2) |" in text
    assert "<svg" in (tmp_path / "gallery-made-up.svg").read_text(encoding="utf-8")


def test_json_has_a_line_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gallery, "source_of", lambda name: made_up(1.0))
    assert gallery.main(["vtc", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["anchor"]
    assert second["name"] == "judged"
    assert (second["published"], second["predicted"]) == ({"ttft_s": 2.0}, {"ttft_s": 1.5})


def test_the_page_in_docs_has_every_entry_of_its_sources() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    sources = [name for name in gallery.SOURCES if f"| `{name}` |\n" in text]
    assert {"sglang-17913", "hours", "data-sheets", "unsettled"} <= set(sources)
    for entry in (entry for name in sources for entry in gallery.source_of(name).entries):
        assert f"## {entry.title}\n" in text, "run make gallery"
        assert entry.about in text, "run make gallery"


def test_sglang_is_near_its_p50_over_a_few_orders() -> None:
    (row,) = predict(None, orders=8)
    assert row.published == PUBLISHED
    assert row.band is not None
    assert row.predicted["e2e_p50_s"] == pytest.approx(PUBLISHED["e2e_p50_s"], rel=0.1)
    assert row.band["e2e_p90_s"][0] < row.predicted["e2e_p90_s"] < row.band["e2e_p90_s"][1]
    assert len(SOURCE.entries[0].bars([row])) == 5


def test_other_rows_of_sglang_may_have_other_settings(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("name,slots,drain_wait_s,e2e_p99_s\nas many slots,6,,15\ndrained,3,5,30\n")
    free, drained = predict(file, orders=2)
    assert set(free.predicted) == {"e2e_p99_s", "share_of_orders_near"}
    assert free.predicted["e2e_p99_s"] < drained.predicted["e2e_p99_s"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,slot,e2e_p50_s\na,3,7\n", "rows.csv:1: unknown columns (got slot, allowed: name, adapters, slots"),
        ("slots,e2e_p50_s\n3,7\n", "rows.csv:1: columns are missing (got name)"),
        ("name,slots,e2e_p50_s\na,two,7\n", "rows.csv:2: slots: not a value (got two, allowed: a whole number, 1 or"),
        ("name,e2e_p50_s\na,0\n", "rows.csv:2: e2e_p50_s: not a latency (got 0, allowed: seconds above 0)"),
        ("name,e2e_p50_s\na,\n", "rows.csv:2: e2e_p50_s: nothing was measured"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        predict(file, orders=1)
    assert said in str(error.value)


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main(["data-sheets", "--rows", "rows.csv"]) == 2
    assert "this source takes no rows" in capsys.readouterr().err
    for arguments in (["--rows", "rows.csv"], ["sglang-17913", "--page"]):
        with pytest.raises(SystemExit) as left:
            gallery.main(arguments)
        assert left.value.code == 2


ROW = {
    "gpu": "a10g",
    "setting": "S1",
    "system": "slora",
    "adapters": "1",
    "rate_rps": "1",
    "cv": "1",
    "alpha": "1",
    "duration_s": "30",
    "req_per_s": "0.9",
    "ttft_mean_s": "0.3",
    "latency_mean_s": "11",
    "slo6s_attainment": "",
}


def write(path: Path, *rows: dict[str, str]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, (*SETTINGS, *MEASURED.values()))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_anchors_are_met_by_the_fitted_numbers() -> None:
    for anchor in {each.host: each for each in ANCHORS.values()}.values():
        for run, names in anchor.rows:
            found = run.predicted(moved(run.gpu, run.model, anchor.host, anchor.prompt))
            for name in names:
                assert found[name] == pytest.approx(run.published[name], rel=0.02), f"{run.name}: {name}"
    factors = ANCHORS[RANK_RUN.gpu, RANK_RUN.model]
    found = RANK_RUN.predicted(moved(RANK_RUN.gpu, RANK_RUN.model, factors.host, factors.prompt))
    assert found["requests_per_s"] == pytest.approx(RANK_RUN.published["requests_per_s"], rel=0.01), "the rank term"


def test_rows_of_a_file_are_predicted(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(shared / "papers" / "slora_paper_runs.csv", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["setting"] == "S1" and row["gpu"] == "a100-80"]
    kept = [{name: row[name] for name in ROW} for row in rows]
    assert (
        main(["slora", "--rows", str(write(tmp_path / "rows.csv", *kept, ROW | {"adapters": "", "cv": ""})), "--json"])
        == 0
    )
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["entry"], row["anchor"]) for row in found] == [(T1, True), (T1, False), (T1, False)]
    for row in found:
        assert row["published"].keys() == row["predicted"].keys() == MEASURED.keys()
        for name, bound in (("requests_per_s", 0.03), ("ttft_mean_s", 0.15)):
            assert row["predicted"][name] == pytest.approx(row["published"][name], rel=bound), row["name"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "h100"}, "rows.csv:2: gpu: not a value (got h100, allowed: a10g, a100-40, a100-80)"),
        ({"setting": "S4"}, "rows.csv:2: setting: the KV pool of this model on this card isn't known (got S4"),
        ({"adapters": "few"}, "rows.csv:2: adapters: not a value (got few, allowed: a whole number)"),
        ({"rate_rps": "0"}, "rows.csv:2: rate_rps: the client can't send that (got 0, allowed: 0.0333333 to 33333.3)"),
        ({"cv": "0"}, "rows.csv:2: cv: the client can't send that (got 0, allowed: 0.01 to 100)"),
        ({"adapters": ""}, "rows.csv: no run can be predicted"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], said: str
) -> None:
    assert main(["slora", "--rows", str(write(tmp_path / "rows.csv", ROW | changes))]) == 2
    assert said in capsys.readouterr().err


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
