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
from sim.studies.observe.readings import Readings, readings_of
from sim.studies.observe.study import observed_service

FIXED = "extends: quickstart\nfleet: {engine: fixed, service: {law: fixed, value: 10 ms}}\n"
DASHBOARD = "uid title description tags schemaVersion refresh time annotations templating panels"
PANEL = "id type title description datasource gridPos fieldConfig targets"
"""Keys that were valid by Grafana's own JSON Schema (grafana-foundation-sdk, jsonschema/): check others there."""
_SERIES = re.compile(r'(loraplan:\w+:\w+)\{scenario="quickstart"\}')


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "quickstart"
    api.run("quickstart", {"workload.requests": 2000}, out=out, jobs=1)
    change(out / "manifest.json", ["headroom"], {"outcome": "found", "multiple": 1.5})
    return out


def change(file: Path, keys: list[str], value: Any) -> None:
    data = place = json.loads(file.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    file.write_text(json.dumps(data), encoding="utf-8")


def of_vllm(samples: Path, model: str = "base") -> Readings:
    text = (samples / "vllm-after.txt").read_text(encoding="utf-8")
    return readings_of([page(text.replace('model_name="base"', f"model_name={json.dumps(model)}"))], 60)


def written(run: Path, readings: Readings) -> tuple[dict[str, str], list[dict[str, Any]], dict[str, Any]]:
    """Expressions by recorded series, alerts, and the dashboard."""
    rules, dashboard = dashboard_files(run, readings, observed_service(readings)).values()
    found = YAML(typ="safe").load(rules)["groups"][0]["rules"]
    recorded = {rule["record"]: rule["expr"] for rule in found if "record" in rule}
    return recorded, [rule for rule in found if "alert" in rule], json.loads(dashboard)


def test_rules_ask_for_what_engines_export_and_panels_for_what_rules_record(finished: Path, samples: Path) -> None:
    readings = of_vllm(samples)
    recorded, alerts, dashboard = written(finished, readings)
    for expr in recorded.values():
        assert set(re.findall(r"\bvllm:\w+", expr)) <= readings.names, expr
    assert (
        'vllm:time_to_first_token_seconds_bucket{model_name="base"}[' in recorded["loraplan:ttft_p99_seconds:measured"]
    )
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {_SERIES.fullmatch(expr)[1] for expr in shown} == recorded.keys()  # type: ignore[index]
    for alert in alerts:
        assert set(_SERIES.findall(alert["expr"])) <= recorded.keys()
        assert alert["for"] == "15m"
    assert dashboard.keys() == set(DASHBOARD.split())
    assert {" ".join(panel) for panel in dashboard["panels"]} == {PANEL}
    assert len({tuple(panel["gridPos"].values()) for panel in dashboard["panels"]}) == 7


def test_an_alert_fires_only_where_a_bucket_shows_that_the_interval_was_left(finished: Path, samples: Path) -> None:
    readings = of_vllm(samples)
    recorded, _, _ = written(finished, readings)
    metric = json.loads((finished / "summary.json").read_text(encoding="utf-8"))["points"][0]["metrics"]["ttft_p99_s"]
    bounds = observed_service(readings).histograms["ttft"].bounds
    low, high = (float(recorded[f"loraplan:ttft_p99_seconds:{end}"][7:-1]) for end in ("low", "high"))
    within = [min(metric["lo"], metric["calibration_lo"]), max(metric["hi"], metric["calibration_hi"])]
    assert low <= within[0] < within[1] <= high
    assert not [bound for bound in bounds if low < bound <= within[0] or within[1] <= bound < high]
    rate, limit = (float(recorded[f"loraplan:requests_per_second:{kind}"][7:-1]) for kind in ("predicted", "limit"))
    assert limit == pytest.approx(1.5 * rate, rel=1e-4)


def test_a_hostile_model_name_stays_inside_its_quotes(finished: Path, samples: Path) -> None:
    recorded, alerts, _ = written(finished, of_vllm(samples, 'a"} or vector(1) #{{\\'))
    assert '{model_name="a\\"} or vector(1) #{{\\\\"}[' in recorded["loraplan:ttft_p99_seconds:measured"]
    assert "vector(1)" not in json.dumps(alerts)


@pytest.mark.parametrize(
    ("file", "keys", "value", "said"),
    [
        ("manifest.json", ["status"], "running", "this run is not finished (got running, allowed: finished)"),
        ("manifest.json", ["point_keys"], [], "this run has several designs, or none (got 0, allowed: one"),
        ("manifest.json", ["schema_version"], 7, "written by another version of loraplan"),
        ("points/*", ["point", "setup", "engine"], "sglang", "another engine (got sglang, allowed: vllm)"),
        ("points/*", ["point", "metrics", "ttft_p99_s", "lo"], None, "p99 TTFT can't be compared"),
    ],
)
def test_runs_that_predict_nothing_here_are_refused(
    finished: Path, samples: Path, tmp_path: Path, file: str, keys: list[str], value: Any, said: str
) -> None:
    (changed,) = shutil.copytree(finished, tmp_path / "run").glob(file)
    change(changed, keys, value)
    with pytest.raises(LoraplanError) as refused:
        written(tmp_path / "run", of_vllm(samples))
    assert said in str(refused.value)


def test_files_lie_beside_the_scenario_and_are_not_overwritten(
    loraplan: CommandLine, finished: Path, samples: Path
) -> None:
    Path("fixed.yaml").write_text(FIXED, encoding="utf-8")
    words = ["--prometheus", str(samples / "vllm-after.txt"), "--window", "60 s", "--base", "fixed.yaml"]
    ended = loraplan("observe", *words, "--dashboard", str(finished), "--out", "o.yaml")
    assert ended.code == 0, ended.err
    assert "watch    loraplan-rules.yaml, loraplan-dashboard.json" in ended.out
    again = loraplan("observe", *words, "--dashboard", str(finished), "--out", "p.yaml")
    assert (again.code, again.err[:35]) == (2, "error: loraplan-rules.yaml: already")
    nowhere = loraplan("observe", *words, "--dashboard", "nowhere", "--out", "q/p.yaml")
    assert (nowhere.code, nowhere.err) == (2, "error: nowhere: no such folder\n")
    assert not Path("q").exists()
