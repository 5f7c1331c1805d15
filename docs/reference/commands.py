"""The command reference: a walk over the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reference.markdown import linked, table


def command_sections() -> str:
    """Return the options that several commands share, and a section for each command with its own."""
    import typer.main

    from sim.cli import app

    commands = list(_commands(typer.main.get_command(app), "loraplan"))
    names = [path.removeprefix("loraplan ") for path, _ in commands]
    users: dict[tuple[str, str], list[str]] = {}
    for name, (_, command) in zip(names, commands, strict=True):
        for row in _options(command):
            users.setdefault(row, []).append(name)
    shared = {row: paths for row, paths in users.items() if len(paths) >= _SHARED}
    rows = [[*row, _listed(paths, names)] for row, paths in shared.items()]
    parts = [table(["of several commands", "what it is", "commands"], rows)]
    for path, command in commands:
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        rows = [[f"`{_argument(param)}`", getattr(param, "help", "") or ""] for param in arguments]
        rows += [list(row) for row in _options(command) if row not in shared]
        parts += ["", f"## {path}", "", linked((command.help or "").split("\f")[0].strip()), ""]
        parts += [table(["", "what it is"], rows)] if rows else []
    return "\n".join(parts).rstrip()


_SHARED = 3
"""Commands that share an option, at least, for it to stand once."""


def _listed(paths: list[str], names: list[str]) -> str:
    others = [name for name in names if name not in paths]
    return ", ".join(paths) if len(paths) <= len(others) else f"all but {', '.join(others)}"


def _options(command: Any) -> Iterator[tuple[str, str]]:
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
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    names = "`, `".join(param.opts)
    return f"`{names}`" if param.is_flag else f"`{names} {param.metavar or str(param.name).strip('_').upper()}`"


def _default_of(param: Any) -> str:
    if isinstance(getattr(param, "show_default", None), str):
        return str(param.show_default)
    default = param.default
    return "" if default is None or default is False or callable(default) else f"`{default}`"
