"""A shell script that starts one replica."""

from __future__ import annotations

import shlex

from sim.studies.deploying.commented_yaml import comment_lines
from sim.studies.deploying.deployment import Deployment

ADAPTERS_HERE = "adapters"
"""The folder of adapters beside the script."""


def shell_script(found: Deployment, head: list[str]) -> str:
    """Return the script, with the run behind every option."""
    program, *rest = found.program
    lines = [f"{shlex.join(['set', '--', *rest, *found.model_words()])} # {found.model_note}"]
    if found.replicas > 1:
        many = f"{found.replicas} replicas behind a router with policy {found.router}"
        head = [*head, f"It starts one of {many}; give each a --port and GPUs of its own."]
    if found.adapters:
        head = [
            *head,
            f"It finds the adapters in the folder named by ADAPTERS; unset: {ADAPTERS_HERE}, beside this file.",
        ]
        lines.insert(0, f'ADAPTERS="${{ADAPTERS:-$(dirname -- "$0")/{ADAPTERS_HERE}}}"')
    for words, note in found.options("$ADAPTERS"):
        lines.append(f'set -- "$@" {" ".join(map(_quoted, words))}' + (f" # {note}" if note else ""))
    exports = [f"export {key}={shlex.quote(value)} # lets clients load adapters" for key, value in _environment(found)]
    start = f'exec {shlex.quote(program)} "$@"'
    return "#!/bin/sh\n" + comment_lines(head) + "\n".join(["set -eu", *exports, *lines, start]) + "\n"


def _environment(found: Deployment) -> list[tuple[str, str]]:
    return list(found.environment.items())


def _quoted(word: str) -> str:
    """Return a word as the shell reads it; the folder of adapters stays a variable."""
    name, equals, path = word.partition("=$ADAPTERS")
    return f'{shlex.quote(name)}="$ADAPTERS"{shlex.quote(path) if path else ""}' if equals else shlex.quote(word)
