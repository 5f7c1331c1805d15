"""``loraplan observe --dashboard``: rules and a dashboard that tell when servers leave a finished run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from metric_pages import page
from ruamel.yaml import YAML

import loraplan as api
from sim.errors import LoraplanError
from sim.studies.observe.dashboard import dashboard_files
from sim.studies.observe.readings import readings_of
from sim.studies.observe.study import observed_service

FIXED = "extends: quickstart\nfleet: {engine: fixed, service: {law: fixed, value: 10 ms}}\n"
HOSTILE = r"a\"} or vector(1) #{{"
PANEL = "id type title description datasource gridPos fieldConfig targets"
"""Keys that were valid by Grafana's own JSON Schema (grafana-foundation-sdk, jsonschema/): check others there."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "quickstart"
    api.run("quickstart", {"workload.requests": 2000, "slo.itl_p95": "50 ms"}, out=out, jobs=1)
    change(out / "manifest.json", ["headroom"], {"outcome": "found", "multiple": 1.5})
    return out


def change(file: Path, keys: list[str], value: Any) -> None:
    data = place = json.loads(file.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(data), encoding="utf-8")


def test_rules_and_panels_compare_what_engines_export_with_the_run(finished: Path, samples: Path) -> None:
    text = (samples / "vllm-after.txt").read_text(encoding="utf-8").replace('="base"', f'="{HOSTILE}"')
    readings = readings_of([page(text)], 60)
    service = observed_service(readings)
    rules, text = dashboard_files(finished, readings, service).values()
    found, panels = YAML(typ="safe").load(rules)["groups"][0]["rules"], json.loads(text)["panels"]
    recorded = {rule["record"]: rule["expr"] for rule in found if "record" in rule}
    for expr in recorded.values():
        assert set(re.findall(r"\bvllm:\w+", expr)) <= readings.names, expr
    assert f'_bucket{{model_name="{HOSTILE}"}}[' in recorded["loraplan:ttft_p99_seconds:measured"]
    shown = [target["expr"] for panel in panels for target in panel["targets"]]
    assert [expr.removesuffix('{scenario="quickstart"}') for expr in shown] == list(recorded)
    assert {" ".join(panel) for panel in panels} == {PANEL}
    assert len({tuple(panel["gridPos"].values()) for panel in panels}) == 8
    for alert in (rule for rule in found if "alert" in rule):
        assert set(re.findall(r"loraplan:\w+:\w+", alert["expr"])) <= recorded.keys()
        assert alert["for"] == "15m"
        assert "vector(1)" not in str(alert)
    assert "quantile(0.95, sum by (le) (rate(vllm:" in recorded["loraplan:itl_p95_seconds:measured"], "the SLO asks"
    assert recorded["loraplan:itl_p95_seconds:SLO"] == "vector(0.05)"
    assert {"LoraplanITLOutsidePrediction", "LoraplanITLP95OutsidePrediction"} <= {rule.get("alert") for rule in found}
    # an alert needs a bucket that shows that the interval was left
    metric = json.loads((finished / "summary.json").read_text(encoding="utf-8"))["points"][0]["metrics"]["ttft_p99_s"]
    low, high = (float(recorded[f"loraplan:ttft_p99_seconds:{end}"][7:-1]) for end in ("low", "high"))
    lower, upper = min(metric["lo"], metric["calibration_lo"]), max(metric["hi"], metric["calibration_hi"])
    assert low <= lower < upper <= high
    assert not [b for b in service.histograms["ttft"].bounds if low < b <= lower or upper <= b < high]
    rate, limit = (float(recorded[f"loraplan:requests_per_second:{kind}"][7:-1]) for kind in ("predicted", "limit"))
    assert limit == pytest.approx(1.5 * rate, rel=1e-4)


@pytest.mark.parametrize(
    ("file", "keys", "value", "said"),
    [
        ("manifest.json", ["status"], "running", "this run is not finished (got running, allowed: finished)"),
        ("manifest.json", ["point_keys"], [], "this run has several designs, or none (got 0, allowed: one"),
        ("points/*", ["point", "setup", "engine"], "sglang", "another engine (got sglang, allowed: vllm)"),
        ("points/*", ["point", "metrics", "ttft_p99_s", "lo"], None, "p99 TTFT can't be compared"),
    ],
)
def test_runs_that_predict_nothing_here_are_refused(
    finished: Path, samples: Path, tmp_path: Path, file: str, keys: list[str], value: Any, said: str
) -> None:
    (changed,) = shutil.copytree(finished, tmp_path / "run").glob(file)
    change(changed, keys, value)
    readings = readings_of([page((samples / "vllm-after.txt").read_text(encoding="utf-8"))], 60)
    with pytest.raises(LoraplanError) as refused:
        dashboard_files(tmp_path / "run", readings, observed_service(readings))
    assert said in str(refused.value)


def test_files_lie_beside_the_scenario_and_stay(loraplan: CommandLine, finished: Path, samples: Path) -> None:
    Path("fixed.yaml").write_text(FIXED, encoding="utf-8")
    words = ["observe", "--prometheus", str(samples / "vllm-after.txt"), "--window", "60 s", "--base", "fixed.yaml"]
    ended = loraplan.succeeds(*words, "--dashboard", str(finished), "--out", "o.yaml")
    assert "watch    loraplan-rules.yaml, loraplan-dashboard.json" in ended.out
    again = loraplan(*words, "--dashboard", str(finished), "--out", "p.yaml")
    assert (again.code, again.err[:35]) == (2, "error: loraplan-rules.yaml: already")
    nowhere = loraplan(*words, "--dashboard", "nowhere", "--out", "q/p.yaml")
    assert (nowhere.code, nowhere.err) == (2, "error: nowhere: no such folder\n")
    assert not Path("q").exists()
