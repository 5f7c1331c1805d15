"""The command reference: a walk over the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reference.markdown import linked, table


def command_sections(*, measuring: bool) -> str:
    """Return a section for each command: what it does, how it is called, its options.

    :param measuring: whether of the commands about profiles and measuring, which have a page of their own.
    """
    import typer.main

    from sim.cli import app

    parts = []
    for path, command in _commands(typer.main.get_command(app), "loraplan"):
        if path.startswith(_MEASURING) != measuring:
            continue
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        options = [param for param in command.params if param.param_type_name == "option"]
        usage = " ".join([path, *(_argument(param) for param in arguments), "[OPTIONS]"])
        rows = [[f"`{_argument(param)}`", getattr(param, "help", "") or "", ""] for param in arguments]
        rows += [[_option(param), param.help or "", _default_of(param)] for param in options if param.name != "help"]
        parts += [
            f"## {path}",
            "",
            linked((command.help or "").split("\f")[0].strip()),
            "",
            "```",
            usage,
            "```",
            "",
            table(["", "what it is", "default"], rows),
            "",
        ]
    return "\n".join(parts).rstrip()


_MEASURING = ("loraplan profiles", "loraplan calibrate", "loraplan fidelity")


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
