"""Whether what requests share fits the fleet: errors, and notes for the user."""

from __future__ import annotations

import numpy as np

from sim.errors import ScenarioError
from sim.spec.engines import ENGINES
from sim.spec.scenario import Scenario
from sim.traffic.generate import Traffic
from sim.traffic.lengths import TokenLengths

SHARING = "workload.prefix, workload.sessions.history, or a trace with prefix_id or hash_ids"


def shared_text_notes(scenario: Scenario, traffic: Traffic, kv_tokens: int | None) -> list[str]:
    """Return notes on shared text that nothing makes use of, and on lengths under which little is shared.

    :param kv_tokens: of one replica; None for an engine without a KV cache.
    :raises ScenarioError: for a router that goes by shared text, where there is none; and where every prompt begins
        with a text that is too long to be served.
    """
    fleet = scenario.fleet
    if scenario.router_policy.reads_text and fleet.replicas > 1 and not traffic.shares_text:
        raise ScenarioError(
            "this router routes by shared text, but these requests share none",
            key="router.policy",
            got=scenario.router.policy,
            hint=f"give {SHARING}",
        )
    notes = _length_notes(scenario, traffic, kv_tokens)
    if traffic.shares_text and not fleet.prefix_caching and fleet.engine != "fixed":
        notes.append("requests share text, but fleet.prefix_caching is off: every prompt is computed as a whole")
    if not traffic.shares_text and _asks_for_caching(scenario):
        notes.append(
            "fleet.prefix_caching changes nothing here, except for preempted requests: no two requests share text; "
            f"give {SHARING}"
        )
    if scenario.adapters.invocation_tokens and not (traffic.shares_text and fleet.prefix_caching):
        missing = "no two requests share text" if fleet.prefix_caching else "fleet.prefix_caching is off"
        notes.append(f"adapters.invocation_tokens changes nothing here: {missing}")
    return notes


def _asks_for_caching(scenario: Scenario) -> bool:
    """Return whether the scenario itself turns prefix caching on, or compares both, rather than its engine's preset."""
    fleet = scenario.fleet
    by_preset = fleet.engine in ENGINES and ENGINES[fleet.engine].preset.get("fleet", {}).get("prefix_caching", False)
    return fleet.prefix_caching and (not by_preset or "fleet.prefix_caching" in scenario.sweep)


def _length_notes(scenario: Scenario, traffic: Traffic, kv_tokens: int | None) -> list[str]:
    """Return notes on prompts that are too long for the model, and conversations too long for their limit."""
    workload, fleet = scenario.workload, scenario.fleet
    notes: list[str] = []
    begin = 0
    if workload.prefix is not None and not traffic.replayed:
        law = TokenLengths(workload.prefix.tokens)
        shortest, begin = (int(tokens) for tokens in law.at(np.array([-8.0, 0.0])))
        most = fleet.max_model_len or kv_tokens or 0
        what = "fleet.max_model_len" if fleet.max_model_len else "the KV cache of a replica, in tokens"
        if most and shortest >= most:
            raise ScenarioError(
                "every prompt would begin with a text that is too long to be served",
                key="workload.prefix.tokens",
                got=f"at least {shortest:,} tokens",
                allowed=f"less than {what} ({most:,})",
            )
        if most and law.longest >= most:
            notes.append(
                f"workload.prefix.tokens goes up to {law.longest:,.0f}, and {what} is {most:,}: requests that begin "
                "with such a text are refused"
            )
    sessions = workload.sessions
    if sessions is not None and sessions.history and not traffic.replayed:
        middle = np.array([0.0])
        turn = sum(int(TokenLengths(law).at(middle)[0]) for law in (workload.tokens.prompt, workload.tokens.output))
        if begin + 2 * turn > sessions.max_context:
            beginning = "a system prompt and two turns" if begin else "two turns"
            notes.append(
                f"workload.sessions.max_context ({sessions.max_context:,}) is below {beginning} of median length "
                f"({begin + 2 * turn:,} tokens): most conversations start over with their second turn, without history"
            )
    return notes
