"""The notebook runs from top to bottom; IPython is no dependency, so its display classes are stood in for."""

from __future__ import annotations

import ast
import json
import sys
from types import ModuleType
from typing import Any

import pytest
from scripts import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "first-hour.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_shows_something(monkeypatch: pytest.MonkeyPatch) -> None:
    display: Any = ModuleType("IPython.display")
    display.HTML = str
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    first, *others = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    named: dict[str, Any] = {}
    exec(first, named)
    charts = []
    for text in others:
        *body, last = ast.parse(text).body
        assert isinstance(last, ast.Expr), text
        exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), named)
        shown = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), named)
        assert shown is not None, text
        charts += [shown] if isinstance(shown, str) else []
    assert len(charts) == 2
    assert all("&lt;path d=" in chart for chart in charts)
    assert named["points"].table("ttft_p99_s").loc[16, "ttft_p99_s"] > named["result"].value("ttft_p99_s")
