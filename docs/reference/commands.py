"""The command reference: a walk over the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reference.markdown import linked


def command_sections() -> str:
    """Return the options that several commands share, and a section for each command with its own."""
    import typer.main

    from sim.cli import app

    commands = list(_commands(typer.main.get_command(app), "loraplan"))
    names = [path.removeprefix("loraplan ") for path, _ in commands]
    users: dict[tuple[str, str], list[str]] = {}
    for name, (_, command) in zip(names, commands, strict=True):
        for row in _rows(command):
            users.setdefault(row, []).append(name)
    shared: dict[str, list[tuple[str, str]]] = {}
    for row, paths in sorted(users.items(), key=lambda each: -len(each[1])):
        if len(paths) >= _SHARED:
            shared.setdefault(_listed(paths, names), []).append(row)
    parts = ["## What several commands have"]
    for listed, rows in shared.items():
        parts += ["", f"**{listed}**", "", *map(_item, rows)]
    for name, (_, command) in zip(names, commands, strict=True):
        parts += ["", f"## {name}", "", linked((command.help or "").split("\f")[0].strip())]
        own = [row for row in _rows(command) if len(users[row]) < _SHARED]
        parts += ["", *map(_item, own)] if own else []
    return "\n".join(parts)


_SHARED = 2
"""Commands that share an argument or an option, at least, for it to stand once."""


def _listed(paths: list[str], names: list[str]) -> str:
    others = [name for name in names if name not in paths]
    return ", ".join(paths) if len(paths) <= len(others) else f"all but {', '.join(others)}"


def _item(row: tuple[str, str]) -> str:
    return f"- {row[0]}: {linked(' '.join(row[1].split()))}"


def _rows(command: Any) -> Iterator[tuple[str, str]]:
    """Yield every argument and every option of a command with what it is, the arguments first."""
    for param in command.params:
        if param.param_type_name == "argument":
            yield f"`{_argument(param)}`", getattr(param, "help", "") or ""
    for param in command.params:
        if param.param_type_name == "option" and param.name != "help":
            default = _default_of(param)
            yield _option(param), f"{param.help or ''} Default: {default}." if default else param.help or ""


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _argument(param: Any) -> str:
    name = param.metavar or str(param.name).upper()
    return name if param.required or name.startswith("[") else f"[{name}]"


def _option(param: Any) -> str:
    names = "`, `".join(param.opts)
    return f"`{names}`" if param.is_flag else f"`{names} {param.metavar or str(param.name).strip('_').upper()}`"


def _default_of(param: Any) -> str:
    if isinstance(getattr(param, "show_default", None), str):
        return str(param.show_default)
    default = param.default
    return "" if default is None or default is False or default == "" or callable(default) else f"`{default}`"
