"""YAML whose values have comments."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.cells import one_line


@dataclass(frozen=True, slots=True)
class Commented:
    """A value with the comment behind it."""

    value: str | int | float | bool
    comment: str


def yaml_documents(head: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents of one file.

    :param head: lines of the comment at its top.
    :param documents: plain data, in which a ``Commented`` may stand for any value.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # a comment belongs to the line before it
    parts = []
    for document in documents:
        target = io.StringIO()
        yaml.dump(_node(document), target)
        parts.append(target.getvalue())
    return comment_lines(head) + "---\n".join(parts)


def comment_lines(lines: Sequence[str]) -> str:
    """Return lines as comments of YAML or of a shell; none can end its comment, whatever a profile has in its texts."""
    return "".join(f"# {one_line(line)}".rstrip() + "\n" for line in lines)


def _node(value: Any) -> Any:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(value, Mapping):
        mapping = CommentedMap()
        for key, item in value.items():
            mapping[key] = _node(item.value if isinstance(item, Commented) else item)
            if isinstance(item, Commented) and item.comment:
                mapping.yaml_add_eol_comment(item.comment, key, column=0)
        return mapping
    if isinstance(value, (list, tuple)):
        sequence = CommentedSeq()
        for place, item in enumerate(value):
            sequence.append(_node(item.value if isinstance(item, Commented) else item))
            if isinstance(item, Commented) and item.comment:
                sequence.yaml_add_eol_comment(item.comment, place, column=0)
        return sequence
    return value.value if isinstance(value, Commented) else value
