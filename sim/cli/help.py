"""What ``--help`` prints: an example first, then what the command does, then its options by task.

Options marked ``hidden`` are rarely needed: they are only named. docs/commands.md describes all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from reports.render.terminal import wrapped
from sim.cli.streams import width_of_terminal

SIMULATE, RESULTS, EXECUTION = "What to simulate", "What to print and keep", "How to run it"
"""Groups of options, as ``rich_help_panel`` of an option names them."""
_ORDER = (SIMULATE, "Options", RESULTS, EXECUTION)
_PIPE_WIDTH = 100
_WIDEST = 24
"""Columns of an option from which its description starts on the next line."""


class CommandHelp(TyperCommand):
    """A command with such a help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write("\n".join(_fitted(self._lines(ctx))))

    def _lines(self, ctx: Any) -> Iterator[str]:
        arguments = [param for param in self.params if param.param_type_name == "argument"]
        options: list[Any] = [each for each in self.params if each.param_type_name == "option" and each.name != "help"]
        options = [each for each in options if not (each.hidden and each.opts[0] in (self.help or ""))]  # said above
        usage = " ".join([ctx.command_path, *map(_argument, arguments), "[OPTIONS]"])
        yield from _about(self.help or "")
        yield from ("", f"Usage: {usage}")
        if arguments:
            yield ""
            yield from _rows((_argument(param), getattr(param, "help", "") or "") for param in arguments)
        yield from _options(options)


class GroupHelp(TyperGroup):
    """A group of commands with such a help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write("\n".join(_fitted(self._lines(ctx))))

    def _lines(self, ctx: Any) -> Iterator[str]:
        yield from _about(self.help or "")
        yield from ("", f"Usage: {ctx.command_path} COMMAND --help")
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, _first(command.help)))
        for title, rows in panels.items():
            yield from ("", title)
            yield from _rows(rows)
        yield from _options([param for param in self.params if param.name != "help"])


def _about(text: str) -> Iterator[str]:
    """Yield the paragraphs of a docstring, the example first."""
    paragraphs = [" ".join(each.split()) for each in text.split("\f")[0].split("\n\n") if each.strip()]
    for number, paragraph in enumerate(sorted(paragraphs, key=lambda each: not each.startswith("Example:"))):
        if number:
            yield ""
        yield paragraph


def _first(text: str | None) -> str:
    """Return the first paragraph of a docstring that is no example."""
    return next((each for each in _about(text or "") if each and not each.startswith("Example:")), "")


def _options(options: Iterable[Any]) -> Iterator[str]:
    panels: dict[str, list[tuple[str, str]]] = {}
    rare = []
    for option in options:
        if option.hidden:
            rare.append(option.opts[0])
            continue
        panel = getattr(option, "rich_help_panel", None)
        rows = panels.setdefault(panel if isinstance(panel, str) else "Options", [])
        value = "" if option.is_flag else f" {option.metavar or str(option.name).strip('_').upper()}"
        shown = getattr(option, "show_default", None)
        default = shown if isinstance(shown, str) else option.default  # words say more than a value such as "."
        unset = default in (None, False, "") or callable(default)
        about = f"{option.help or ''}{'' if unset else f' Default: {default}.'}"
        rows.append((f"{', '.join(option.opts)}{value}", about))
    for title in sorted(panels, key=lambda each: _ORDER.index(each) if each in _ORDER else len(_ORDER)):
        yield from ("", title)
        yield from _rows(panels[title])
    if rare:
        yield from ("", "Also, in docs/commands.md:", f"    {', '.join(rare)}")


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each row, as ``wrapped`` wants it to hang the description below itself."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows if len(name) <= _WIDEST), default=0)
    for name, words in rows:
        if len(name) <= _WIDEST:
            yield f"  {name:<{width}}  {words}"
        else:
            yield from (f"  {name}", f"  {'':<{width}}  {words}")


def _fitted(lines: Iterable[str]) -> Iterator[str]:
    width = width_of_terminal() or _PIPE_WIDTH
    for line in lines:
        yield from wrapped(line, width)


def _argument(param: Any) -> str:
    name = param.metavar or str(param.name).upper()
    return name if param.required or name.startswith("[") else f"[{name}]"
