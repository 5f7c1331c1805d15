"""The text that prompts begin with and that several requests share, such as a system prompt."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from sim.spec.base import Strict
from sim.spec.sections.laws import TokenLaw


class SharedPrefix(Strict):
    """Every prompt begins with a text that other requests have too, such as a system prompt."""

    shared_by: Literal["adapter", "all"] = "adapter"
    """``adapter``: every adapter has texts of its own. ``all``: all requests draw from the same texts, such as one
    system prompt for everybody. Engines never share cached blocks between adapters, so ``all`` saves no more than
    equally long texts of the adapters' own."""
    texts: PositiveInt = Field(default=1, le=1_000_000)
    """How many texts each adapter has, or all have together: prompts of tenants or templates, for example. A session
    keeps its text; without sessions every request draws one. They are equally likely."""
    tokens: TokenLaw
    """Length of a text, drawn once for each. ``workload.tokens.prompt`` is what follows it. With a trace that has
    lengths, the text is the beginning of the recorded prompts, which must be long enough."""
