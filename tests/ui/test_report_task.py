"""The report of a page is a whole run directory, or none."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from sim.ui.library import Library
from sim.ui.simulating import tasks
from sim.ui.simulating.tasks import Evaluation, Memory, Report


def test_a_report_that_was_stopped_while_it_was_copied_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "scratch"
    run.mkdir()
    (run / "summary.json").write_text("{}")
    page = run / "report.html"
    page.write_text("the report")
    monkeypatch.setattr(tasks, "read_run", lambda folder: folder)
    monkeypatch.setattr(tasks, "run_report", lambda data: data)
    monkeypatch.setattr(tasks, "write", lambda report, folder: page)
    design = Library(tmp_path).open("quickstart").design({})
    destination = tmp_path / "runs" / "mine"
    report = Report(Evaluation(design.loaded, design.traffic_key, run, design.command()), destination)

    def stopped(source: str, target: str) -> None:
        shutil.copy2(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        real = shutil.copytree
        stopping.setattr(shutil, "copytree", partial(real, copy_function=stopped))
        with pytest.raises(KeyboardInterrupt):
            list(report.run(Memory()))
    assert not list(destination.parent.iterdir())
    assert list(report.run(Memory())) == [destination / "report.html"]
    assert sorted(file.name for file in destination.iterdir()) == ["report.html", "summary.json"]
    assert [folder.name for folder in destination.parent.iterdir()] == ["mine"]
