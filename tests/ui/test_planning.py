"""Which question "plan from here" asks, and whether its command asks the same one."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sim.spec.scenario_file import load_scenario
from sim.studies.plan.candidates import variables
from sim.ui.library import Library
from sim.ui.simulating.tasks import plan_from_here


@pytest.mark.parametrize(
    ("name", "moved", "words", "values"),
    [
        ("quickstart", "fleet.tensor_parallel", "smallest value of “GPUs per replica (TP)” from 1 to 8", (1, 2, 4, 8)),
        ("quickstart", "adapters.rank", "smallest value of “GPU slots” from 4 to 256", None),
        ("quickstart", "fleet.replicas", "smallest value of “replicas” from 1 to 8", (1, 2, 3, 4, 5, 6, 7, 8)),
        ("quickstart", "slo.ttft_p99", "smallest value of “GPU slots” from 4 to 256", None),
        ("tenants-trace", "workload.trace.time_scale", "“times the recorded traffic” from 0.125 to 8 that", None),
    ],
)
def test_a_plan_asks_for_what_can_be_had(
    name: str, moved: str, words: str, values: tuple[int, ...] | None, tmp_path: Path
) -> None:
    task, said = plan_from_here(Library(tmp_path).open(name).design({}), moved, tmp_path)
    assert words in said
    question = task.loaded.scenario.plan
    (variable,) = variables(question)
    if values is not None:
        assert variable.values == values
    words_of_command = shlex.split(task.command)
    assert words_of_command[:3] == ["loraplan", "plan", name]
    option, text = words_of_command[3:]
    if option == "--set":
        assert load_scenario(name, [text]).scenario.plan == question
    else:
        assert option == f"--{question.direction}"
        ends = text.partition("=")[2].split("..")
        assert [str(end) for end in question.range or ()] == ends
