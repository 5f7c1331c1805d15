"""Write the parts of the reference pages that follow from the code: run ``python docs/generate.py``.

A page holds hand-written text and regions between ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``; only
the regions are written. ``--check`` writes nothing and fails where a region is not what the code says now.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent

TAGS = ("law", "process", "kind")
"""Keys that say which of several models a mapping is; as in sim/spec/files/tree.py."""

POOLS = "fleet.pools[]"
"""The section that repeats keys of others: its table shows its own."""

_UNIT_OF_EXAMPLE = {"20 ms": "time", "50 MB": "size", "12/s": "rate", "5%": "share"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_PLAIN = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}

OVER_REQUESTS = {
    "admitted": "admitted measured requests for adapters",
    "completed": "completed measured requests",
    "measured": "measured requests",
    "time": "the measured time",
}
"""Over what a metric is taken; docs/metrics.md says what each of these means."""

METRICS = {
    "miss_ratio": ("Requests that had to start a load, over all.", "admitted", "ratio"),
    "delayed_hit_ratio": ("Requests that joined a load under way, over all.", "admitted", "ratio"),
    "hit_ratio": ("Requests that found their adapter resident when they needed it, over all.", "admitted", "ratio"),
    "byte_miss_ratio": ("Adapter bytes of the requests that missed, over those of all requests.", "admitted", "ratio"),
    "loads_per_request": (
        "Loads from any tier that start in the measured time, including loads of whole models, over the requests. "
        "Each attempt of a load that fails counts.",
        "admitted",
        "ratio",
    ),
    "loader_utilization": (
        "Seconds in which loads from storage run, including pauses between attempts, over measured time × "
        "`storage.loaders` × replicas. Copies from host memory and loads of whole models do not count.",
        "time",
        "ratio",
    ),
    "gpu_utilization": (
        "Seconds in which a step (engine `fixed`: a request) runs, over measured time × replicas, including replicas "
        "of full models. A batch of one counts as much as a batch of 256.",
        "time",
        "ratio",
    ),
    "queue_mean_s": (
        "Arrival to first admission, mean. With `storage.mode: overlap` the load wait is part of it.",
        "completed",
        "mean",
    ),
    "queue_p50_s": ("The same, median.", "completed", "quantile"),
    "queue_p99_s": ("The same, 99 % quantile.", "completed", "p99"),
    "load_wait_mean_s": ("From needing the adapter to having it, mean; 0 for a hit.", "completed", "mean"),
    "ttft_mean_s": (
        "TTFT, mean: arrival to the end of the step that completes the prefill. Engine `fixed` has one "
        "answer, so there TTFT equals E2E.",
        "completed",
        "mean",
    ),
    "ttft_p50_s": ("TTFT, median.", "completed", "quantile"),
    "ttft_p99_s": ("TTFT, 99 % quantile.", "completed", "p99"),
    "tpot_mean_s": (
        "TPOT, mean over requests of (last token − first token) / (output tokens − 1); requests with "
        "one output token are left out.",
        "completed",
        "mean",
    ),
    "itl_mean_s": (
        "ITL, mean over the gaps between consecutive tokens, all requests pooled: a request of 900 "
        "tokens weighs 899 times one of 2.",
        "gaps",
        "ratio",
    ),
    "itl_p99_s": (
        "ITL, 99 % quantile of the same gaps, from a histogram: the upper edge of a bin 0.1 % wide. "
        "Steps of a batch that differ by less than half a bin count as equal.",
        "gaps",
        "histogram",
    ),
    "e2e_mean_s": ("Arrival to last token, mean.", "completed", "mean"),
    "e2e_p50_s": ("E2E, median.", "completed", "quantile"),
    "e2e_p99_s": ("E2E, 99 % quantile.", "completed", "p99"),
    "throughput_rps": (
        "Requests that end in the measured time, per second, including those that arrived in the warm-up.",
        "time",
        "ratio",
    ),
    "output_tokens_per_s": (
        "Output tokens of the requests in `throughput_rps`, per second; all tokens of a request count when it ends.",
        "time",
        "ratio",
    ),
    "goodput_rps": (
        "Measured requests that end in the measured time and within every target for single requests, per second.",
        "time",
        "ratio",
    ),
    "slo_attainment": (
        "Measured requests that complete within every target for single requests, over completed, refused and failed "
        "requests and unfinished ones that are already late. Other unfinished requests are left out.",
        "measured",
        "share",
    ),
    "completed": ("Requests that ended with their last token, summed over replications.", "measured", "none"),
    "unfinished": ("Requests still inside when a run of given `duration` stops.", "measured", "none"),
    "refused": (
        "Requests that are refused: with more prompt and output tokens than `fleet.max_model_len` or the KV cache of "
        "a replica allows, or, without chunked prefill, a prompt longer than a step's budget; while their adapter was "
        "being replaced (`unload-then-load`); with host memory full of adapters in use (`cache.host.full: reject`); "
        "beyond the requests that the client of `fleet.front_end` keeps open.",
        "measured",
        "sum",
    ),
    "failed": (
        "Requests that ended without a right answer: they were lost with their replica, their adapter could not be "
        "loaded, or a wrong answer to the last try was noticed.",
        "measured",
        "sum",
    ),
    "preemptions": ("Times a running request lost its KV blocks and had to start again.", "measured", "none"),
    "evictions": (
        "Adapters that left GPU memory in the whole run of every replication, including warm-up and drain.",
        "whole run",
        "none",
    ),
    "prefix_hit_ratio": (
        "Prompt tokens that requests found cached when they were first admitted, over all their prompt tokens: vLLM's "
        "`prefix_cache_hits` over `prefix_cache_queries`. Only with [prefix caching](prefix-caching.md) and requests "
        "that can share text; otherwise absent.",
        "admitted",
        "ratio",
    ),
    "prefix_blocks_evicted": (
        "Cached KV blocks that were taken for other content, in the whole run of every replication. Absent like "
        "`prefix_hit_ratio`.",
        "whole run",
        "none",
    ),
    "prefix_hit_ttft_mean_s": (
        "TTFT of requests that found any of their prompt cached, mean. Absent like `prefix_hit_ratio`.",
        "completed",
        "mean",
    ),
    "prefix_miss_ttft_mean_s": (
        "TTFT of requests that found nothing cached, mean. Absent like `prefix_hit_ratio`.",
        "completed",
        "mean",
    ),
    "replica_load_skew": (
        "Requests of the busiest replica (in each replication) over the mean per replica: 1 is even, `fleet.replicas` "
        "means that one replica got all. Replicas of full models are left out.",
        "measured",
        "ratio",
    ),
    "harmed": (
        "Affected requests: with a mixed or stale answer, a wrong answer that was not noticed, or an old prefix, and "
        "those that were refused by a rollout, failed, or were [late](verdict.md#who-is-late). Each counts once.",
        "measured",
        "count",
    ),
    "harmed_excess": (
        "Affected requests beyond those of the same traffic without rollouts and faults "
        "([how](verdict.md#beyond-the-usual)). Below 0 if fewer are late than without.",
        "measured",
        "count",
    ),
    "mixed_version_responses": (
        "Requests whose tokens come from more than one version, even if the last token never came.",
        "measured",
        "count",
    ),
    "sessions_saw_both": (
        "Sessions that were answered by more than one version of an adapter, in one answer or in several. A session "
        "with several adapters counts once for each.",
        "completed",
        "count",
    ),
    "sessions_went_back": (
        "Of those, sessions in which an answer begins with an older version than an earlier answer of the session had.",
        "completed",
        "count",
    ),
    "stale_after_cutover": (
        "Requests that arrived when all requests should get the new version, and whose answer began with an older one.",
        "measured",
        "count",
    ),
    "extra_resident_bytes_peak": (
        "Most bytes that old versions took in the GPU memory of all replicas in addition to new ones of the same "
        "adapter, mean over replications. Only `new-name` has several versions at a time.",
        "whole run",
        "replications",
    ),
    "rollout_duration_s": (
        "From `at` until the last request of the last old version has left (`new-name`), or until every replica has "
        "the new version; with several rollouts the longest; mean over replications. Withheld unless complete in all "
        "of them.",
        "whole run",
        "replications",
    ),
    "rollout_loads": ("Loads from any tier that start *during*.", "the window", "count"),
    "rollout_peak_loads_per_s": (
        "Highest number of loads that start within any 10 s *during* (within all of it, if it is shorter), per "
        "second; mean over replications.",
        "the window",
        "replications",
    ),
    "rollout_ttft_p99_s": (
        "TTFT, 99 % quantile, of requests that arrive *during*.",
        "completed",
        "p99 of replications",
    ),
    "rollout_e2e_p99_s": ("E2E, 99 % quantile, of requests that arrive *during*.", "completed", "p99 of replications"),
    "rollout_miss_ratio": ("Miss ratio of requests that arrive *during*.", "admitted", "replications"),
    "before_peak_loads_per_s": (
        "Like `rollout_peak_loads_per_s`, in the measured time before the first rollout begins.",
        "the time before",
        "replications",
    ),
    "before_ttft_p99_s": (
        "TTFT, 99 % quantile, of requests that arrive before the first rollout begins.",
        "completed",
        "p99 of replications",
    ),
    "before_e2e_p99_s": ("E2E, 99 % quantile, of the same.", "completed", "p99 of replications"),
    "before_miss_ratio": ("Miss ratio of the same.", "admitted", "replications"),
    "misrouted": ("Requests that reached a wrong adapter, or none, at least once.", "measured", "count"),
    "wrong_adapter_served": (
        "Requests with a wrong answer that was not noticed. They count as completed.",
        "measured",
        "count",
    ),
    "wrong_adapter_detected": ("Requests with a wrong answer that was noticed.", "measured", "count"),
    "retried": ("Requests that were sent again after a wrong answer, once or more.", "measured", "count"),
    "old_prefix_served": (
        "Requests whose prefix came from an older version (fault `named-prefixes`).",
        "measured",
        "count",
    ),
    "rerouted": ("Requests sent to another replica because theirs had crashed.", "measured", "count"),
    "lost": ("Requests lost with their replica. They count as failed.", "measured", "count"),
    "rerouted_e2e_mean_s": (
        "E2E of rerouted requests, from their first arrival, mean. A replica that crashes holds long requests more "
        "often than short ones, so these requests are also longer than others.",
        "completed",
        "replications",
    ),
    "replica_seconds": (
        "With `fleet.autoscale`: seconds of each replica, from the start of its cold start to the end of its drain; "
        "mean over replications.",
        "time",
        "count",
    ),
    "mean_replicas": ("`replica_seconds` over the measured time.", "time", "ratio"),
    "replicas_started": ("Replicas whose cold start begins; mean over replications.", "time", "count"),
    "replicas_stopped": ("Replicas whose drain begins; mean over replications.", "time", "count"),
    "cold_start_mean_s": (
        "From the start of a replica until it serves, mean over those that begin to serve.",
        "time",
        "replications",
    ),
    "late_while_starting": (
        "Requests that miss a per-request target of the `slo`, over all that arrive while a replica starts.",
        "measured",
        "ratio",
    ),
    "late_otherwise": ("The same over all other requests.", "measured", "ratio"),
    "new_replica_loads": (
        "Loads from any tier in the first minute of a new replica, mean over the replicas that begin to serve.",
        "time",
        "replications",
    ),
    "new_replica_miss_ratio": (
        "Requests that had to start a load, over those for adapters that new replicas admit in their first minute.",
        "time",
        "replications",
    ),
    "placement_moves": (
        "Adapters that [a controller](placement.md) moved to a replica; mean over replications.",
        "time",
        "count",
    ),
    "placement_loads": ("Moves after which the adapter was loaded before a request found it.", "time", "count"),
    "placement_load_s": ("Seconds of these loads.", "time", "replications"),
    "placed_share": ("Requests whose adapter had a place, over all for adapters.", "measured", "ratio"),
    "usd_per_m_tokens": (
        "[Cost](costs.md) of the measured time at `fleet.price`, over prompt and output tokens of the requests that "
        "end in it, times a million. Absent without a price, as the other costs are.",
        "time",
        "ratio",
    ),
    "usd_per_m_input_tokens": ("The same cost over prompt tokens alone.", "time", "ratio"),
    "usd_per_m_output_tokens": ("The same cost over output tokens alone.", "time", "ratio"),
    "usd_per_request": ("The same cost over the requests.", "time", "ratio"),
    "usd_per_month": (
        "`fleet.price` × GPUs × 730 hours; with `fleet.autoscale` the GPUs of `mean_replicas`.",
        "time",
        "none",
    ),
    "idle_usd_per_month": ("The part of it in which GPUs compute nothing: 1 − `gpu_utilization`.", "time", "ratio"),
    "cost_usd": (
        "With `fleet.autoscale`: `fleet.price` × GPUs of a replica × `replica_seconds`.",
        "time",
        "count",
    ),
}
"""Each metric's definition, what it is taken over, and how its interval is made."""


def main() -> int:
    """Write the pages, or say which are not current."""
    check = "--check" in sys.argv[1:]
    stale = 0
    for path, text in pages().items():
        if path.read_text(encoding="utf-8") == text:
            continue
        if check:
            stale += 1
            print(f"{path.name} is not current: run python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(path.name)
    return 1 if stale else 0


def pages() -> dict[Path, str]:
    """Return the text that every page with generated regions should have."""
    makers: dict[str, tuple[str, Callable[[], str]]] = {
        "scenario": ("scenario.md", scenario_table),
        **{
            f"scenario-{page}": (f"scenario-{page}.md", functools.partial(scenario_sections, page))
            for page in SCENARIO_PAGES
        },
        "metrics": ("metrics.md", metric_table),
        "profiles": ("profile-sources.md", profile_sections),
        "built-profiles": ("profiles.md", built_profiles),
        "commands": ("commands.md", lambda: command_sections(measuring=False)),
        "measuring-commands": ("commands-measuring.md", lambda: command_sections(measuring=True)),
        "engine-rules": ("adapters.md", engine_rules),
        "adapter-modes": ("engine-modes.md", mode_tables),
        "engine-versions": ("engines.md", version_table),
        "options-to-keys": ("engine-flags.md", option_tables),
        "keys-to-options": ("engine-flags.md", key_table),
        "thresholds": ("vet.md", threshold_table),
    }
    result: dict[Path, str] = {}
    for name, (page, make) in makers.items():
        path = DOCS / page
        text = result.get(path) or path.read_text(encoding="utf-8")
        region = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not region.search(text):
            raise SystemExit(f"{page} has no region {name!r}")
        body = make()
        result[path] = region.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)  # type: ignore[misc]
    return result


def engine_rules() -> str:
    """Return what engines make of adapters, and the words of each rule that isn't plain support."""
    from sim.spec.engines import ENGINES
    from sim.training.files.engine_checks import rules_of
    from sim.training.files.engine_rules import EXTRAS

    names_by_target: dict[str, list[str]] = {}
    for engine in ENGINES:
        if engine.name not in ("continuous", "fixed"):
            names_by_target.setdefault(engine.target, []).append(engine.name)
    rules_by_engine = {
        names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}": rules_of(names[0])
        for names in names_by_target.values()
    }
    real = list(rules_by_engine)
    words = {"served": "yes", "refused": "refused", "wrong": "wrongly", "unknown": "–"}
    rows = [[extra, *(words[rules_by_engine[name].rule(extra).verdict] for name in real)] for extra in EXTRAS]
    slots = {
        "all": "all modules, largest rank",
        "targets": "all targets, largest rank",
        "adapter": "the adapter",
        "unknown": "–",
    }
    rows.append(["a slot holds", *(slots[rules_by_engine[name].slots_hold] for name in real)])
    choices = [", ".join(map(str, rules_by_engine[name].rank_choices)) or "–" for name in real]
    rows.append(["largest rank, choices", *choices])
    said = [
        [name, extra, rule.words, f"`{rule.source}`" if rule.source else ""]
        for name in real
        for extra, rule in rules_by_engine[name].extras.items()
    ]
    return table(["", *real], rows) + "\n\n" + table(["engine", "extra", "the engine …", "read from"], said)


def mode_tables() -> str:
    """Return the ways of serving adapters, and what they and other choices need of the rest of a scenario."""
    from sim.spec.adapter_modes import MODES, OTHER_CHOICES
    from sim.spec.needs import words_of

    modes, needs = [], []
    for each in (*MODES, *OTHER_CHOICES):
        chosen = " or ".join(f"`{key}: {words_of(value)}`" for key, value in each.set_by.items())
        if each in MODES.entries:
            modes.append([f"`{each.name}`", each.about, chosen])
        reasons: dict[str, list[str]] = {}
        for need in each.needs:
            reasons.setdefault(need.why, []).extend(f"`{key}` {values.words}" for key, values in need.keys.items())
        needs += [[chosen, ", ".join(keys), why] for why, keys in reasons.items()]
    return table(["mode", "what it does", "set by"], modes) + "\n\n" + table(["setting", "needs", "because"], needs)


def version_table() -> str:
    """Return the preset of each version of an engine, or the nearest."""
    from sim.spec.engine_versions import VERSIONS

    rows = [
        [f"{name} {row.words}", f"`{row.preset}`" if row.simulated else f"none; `{row.preset}` is nearest", row.about]
        for name, found in VERSIONS.items()
        for row in found
    ]
    return table(["your version", "preset", "this version …"], rows)


def option_tables() -> str:
    """Return a section for each engine: its options, and what a scenario has for each."""
    from sim.spec.engine_flags.flag_tables import FLAGS

    parts = []
    for engine in FLAGS:
        rows = [
            [
                ", ".join(f"`{name}`" for name in _spellings(flag)),
                ", ".join(f"`{setting}`" for setting in flag.sets) or "–",
                flag.about,
            ]
            for flag in engine.flags
        ]
        parts.append(f"## {engine.name}\n\n" + table(["option", "key", ""], rows))
    return "\n" + "\n\n".join(parts) + "\n"


def _spellings(flag: Any) -> list[str]:
    """Return the names of an option, without the last part of one that has the whole."""
    return [flag.name, *(name for name in flag.also if not flag.name.endswith(f".{name}"))]


def key_table() -> str:
    """Return the keys that options of engines stand for, each with these options."""
    from sim.spec.engine_flags.flag_tables import FLAGS
    from sim.spec.files.problems import known_keys
    from sim.spec.scenario import Scenario

    rows = []
    for key in known_keys(Scenario):
        cells = [
            ", ".join(
                _option_for(flag.name, setting)
                for flag in engine.flags
                for setting in flag.sets
                if key == _key(setting)
            )
            for engine in FLAGS
        ]
        if any(cells):
            rows.append([f"`{key}`", *(cell or "–" for cell in cells)])
    return table(["key", *FLAGS.names], rows)


def _key(setting: str) -> str:
    return setting.partition(": ")[0]


def _option_for(name: str, setting: str) -> str:
    value = setting.partition(": ")[2]
    return f"`{name}` ({value})" if value else f"`{name}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def threshold_table() -> str:
    """Return every line that vet draws: its default, its meaning and its source."""
    from sim.spec.base import descriptions
    from sim.training.logs.thresholds import Thresholds

    rows = []
    texts = descriptions(Thresholds)
    for name, field in Thresholds.model_fields.items():
        meaning, _, source = " ".join(texts.get(name, "").split()).partition("Source: ")
        rows.append([f"`{name}`", f"{field.default:g}", meaning.strip(), source.strip()])
    return table(["threshold", "value", "meaning", "source"], rows)


# The command reference: a walk over the command line.


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
            (command.help or "").split("\f")[0].strip(),
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


# The scenario reference: a walk over the JSON Schema that the models give.


SCENARIO_PAGES = {
    "workload": ("workload", ()),
    "laws": ("", ("arrivals", "popularity", "prompt", "service")),
    "adapters": ("adapters", ()),
    "fleet": ("fleet", ()),
    "cache": ("cache", ()),
    "storage": ("storage", ()),
    "router": ("router", ()),
    "rollouts": ("rollouts", ()),
    "faults": ("", ("faults",)),
    "slo": ("slo", ()),
    "tenants": ("tenants", ()),
    "run": ("run", ()),
    "plan": ("plan", ()),
}
"""For each page ``scenario-NAME.md``: the key whose sections it has, and the laws."""

_LAWS = {
    "arrivals": "Arrival processes",
    "popularity": "Popularity laws",
    "prompt": "Token laws",
    "service": "Time laws",
    "faults": "Kinds of faults",
}


def scenario_table() -> str:
    """Return the table of a scenario's top level, with links to the page of each section."""
    from sim.spec.files.schema import scenario_schema

    models = scenario_schema()["$defs"]
    model = models["Scenario"]
    rows = [_field_row("", key, field, model, models) for key, field in model["properties"].items()]
    for row in rows:
        key = row[0].strip("`")
        if key in SCENARIO_PAGES:
            row[0] = f"[{row[0]}](scenario-{key}.md)"
        elif "section" in row[1]:
            raise SystemExit(f"the section {key!r} has no page: add one to SCENARIO_PAGES")
    return "\n" + table(["key", "type", "default", "meaning"], rows) + "\n"


def scenario_sections(page: str) -> str:
    """Return the tables of one page of the scenario reference: its sections in the order of the file, then its laws."""
    from sim.spec.files.schema import scenario_schema

    models = scenario_schema()["$defs"]
    parts = []
    key, laws = SCENARIO_PAGES[page]
    for path, name in _sections(models):
        if not key or path.partition(".")[0].removesuffix("[]") != key:
            continue
        model = models[name]
        elsewhere = models["Fleet"]["properties"].keys() - {"replicas"} if path == POOLS else ()
        fields = {one: field for one, field in model["properties"].items() if one not in elsewhere}
        rows = [_field_row(path, one, field, model, models) for one, field in fields.items()]
        about = " ".join(str(model.get("description", "")).replace("``", "`").split())
        parts.append(f"## `{path}`\n\n{about}\n\n" + table(["key", "type", "default", "meaning"], rows))
    return "\n\n".join(["", *parts, *(_law_table(models, law) for law in laws), ""])


def _sections(models: dict[str, Any], name: str = "Scenario", path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, model) of every section; laws have tables of their own."""
    yield path, name
    for key, field in models[name]["properties"].items():
        if path == POOLS and key in models["Scenario"]["properties"]:
            continue  # keys of cache and storage have their pages
        inner = [one for one in _referred(field) if not models[one]["properties"].keys() & set(TAGS)]
        if len(inner) == 1:
            yield from _sections(models, inner[0], f"{path}.{key}" if path else key)
        listed = field.get("items", {}).get("$ref")
        if listed:
            yield from _sections(models, listed.rpartition("/")[2], f"{path}.{key}[]" if path else f"{key}[]")


def _referred(field: dict[str, Any]) -> list[str]:
    found = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
    return [part["$ref"].rpartition("/")[2] for part in found if "$ref" in part] + [
        one for part in field.get("anyOf", ()) for one in _referred(part) if "oneOf" in part
    ]


def _field_row(path: str, key: str, field: dict[str, Any], model: dict[str, Any], models: dict[str, Any]) -> list[str]:
    full = f"{path}.{key}".lstrip(".")
    kind = _type(field, models)
    inner = _referred(field)
    about = field.get("description") or (models[inner[0]].get("description", "") if inner else "")
    if key in model.get("required", ()):
        default = "required"
    elif kind == "section" and field.get("default") is not None:
        default = "see below"
    else:
        default = _default(field, kind)
    return [f"`{full}`", kind, default, about]


def _type(field: dict[str, Any], models: dict[str, Any]) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{word}`" for word in field["enum"])
    example = next(iter(field.get("examples", ())), None)
    if example in _UNIT_OF_EXAMPLE:
        return f"{_UNIT_OF_EXAMPLE[example]}, such as `{example}`"
    if "pattern" in field:
        return f"text such as `{example}`" if example else "text"
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        if any("5%" in part.get("examples", ()) for part in options):
            return "share, such as `5%`"
        words = [_type(part, models) for part in options if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        properties = models[name]["properties"]
        tag = next((tag for tag in TAGS if tag in models[name].get("required", ())), None)
        return _type(properties[tag], models) if tag else "section"
    if field.get("type") == "array":
        inner = _type(field["items"], models) if field.get("items") else ""
        if "oneOf" in field.get("items", {}):
            return "list of kinds, see below"
        return "list" if not inner else "list of sections" if inner == "section" else f"list of {inner}"
    if field.get("type") == "object":
        lists = field.get("additionalProperties", {}) not in (True, {})
        return "lists of values by dotted key" if lists else "values by dotted key"
    if "type" not in field:
        return "any value"
    kind = _PLAIN.get(str(field.get("type")), str(field.get("type")))
    bounds = [f"{word} {field[name]:,.12g}" for name, word in _BOUNDS.items() if name in field]
    return f"{kind}, {' and '.join(bounds)}" if bounds and kind != "text" else kind


def _default(field: dict[str, Any], kind: str) -> str:
    value = field.get("default")
    if kind.startswith("time") and isinstance(value, (int, float)):
        from sim.spec.units import format_seconds

        return f"`{format_seconds(value)}`"
    if kind.startswith("share") and isinstance(value, float):
        return f"`{value:.0%}`"
    if value is None:
        return "unset" if "default" in field else "empty"
    return f"`{_value(value)}`" if value not in ("", [], {}) else "empty"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        given = {key: item for key, item in value.items() if item is not None}
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in given.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


_PLACES = {
    "arrivals": "Workload",
    "popularity": "Workload",
    "service": "Fleet",
    "prompt": "Tokens",
    "faults": "Scenario",
}
"""The model in which each kind of law can be found."""


def _law_table(models: dict[str, Any], key: str) -> str:
    rows = []
    kinds = models[_PLACES[key]]["properties"][key]
    for name in _referred(kinds.get("items", kinds)):
        model = models[name]
        tag = next(tag for tag in TAGS if tag in model["properties"])
        own = [item for item in model["properties"].items() if item[0] != tag]
        names = model["properties"][tag]
        word = " or ".join(f"`{tag}: {name}`" for name in names.get("enum", [names.get("const")]))
        about = str(model.get("description", ""))
        rows.append([word, "", "", "", about])
        for one, field in own:
            rows.append(["", *_field_row("", one, field, model, models)])
            listed = field.get("items", {}).get("$ref", "").rpartition("/")[2]
            section = [ref for ref in _referred(field) if not models[ref]["properties"].keys() & set(TAGS)]
            for ref, path in ((listed, f"{one}[]"), (section[0] if len(section) == 1 else "", one)):
                inner = models[ref]["properties"].items() if ref else ()
                rows += [["", *_field_row(path, part, item, models[ref], models)] for part, item in inner]
    first = "kind" if key == "faults" else "law"
    return f"## {_LAWS[key]}\n\n" + table([first, "key", "type", "default", "meaning"], rows)


# The metrics, in the order in which tables print them.


def metric_table() -> str:
    """Return one row a metric: name, words, unit, definition, what it is taken over, interval."""
    from reports.formatting import METRIC_WORDS
    from sim.results.point import UNITS
    from sim.spec.scenario import Slo

    if list(METRICS) != list(UNITS):
        raise SystemExit("docs/generate.py and sim/results/point.py do not name the same metrics")
    slo = {name if name == "miss_ratio" else f"{name}_s": name for name in Slo.model_fields}
    units = {
        "1": "–",
        "s": "s",
        "1/s": "1/s",
        "requests": "requests",
        "sessions": "sessions",
        "loads": "loads",
        "moves": "moves",
        "replicas": "replicas",
        "replica-s": "replica-seconds",
        "B": "bytes",
        "USD": "US dollars",
    }
    rows = []
    for name, (definition, over, interval) in METRICS.items():
        asked = f"`slo.{slo[name]}`" if name in slo else ""
        unit, over_words = units[UNITS[name]], OVER_REQUESTS.get(over, over)
        rows.append([f"`{name}`", METRIC_WORDS[name], unit, definition, over_words, interval, asked])
    return table(["name", "in tables", "unit", "definition", "over", "interval", "SLO term"], rows)


# The bundled profiles, with the source of every number.


def _profiles() -> tuple[list[Any], list[Any]]:
    """Return the bundled profiles with sources of their own, and those built from kernel tables."""
    from sim.spec.profile import bundled_profiles, load_profile

    own: list[Any] = []
    built: list[Any] = []
    for profile in (load_profile(name)[0] for name in bundled_profiles()):
        made = profile.provenance is not None and profile.provenance.command.startswith("loraplan profiles build")
        (built if made else own).append(profile)
    return own, built


def built_profiles() -> str:
    """Return one table of the profiles that are built from kernel tables."""
    rows = []
    for profile in _profiles()[1]:
        surrogate = profile.error.partition(";")[0].removeprefix("step costs reproduce the kernel tables ")
        rows.append([f"`{profile.name}`", profile.device, profile.model, str(profile.tensor_parallel), surrogate])
    return "\n" + table(["profile", "device", "model", "GPUs", "step costs against the kernel tables"], rows) + "\n"


def profile_sections() -> str:
    """Return a section for each bundled profile that is not built from kernel tables."""
    parts = []
    for profile in _profiles()[0]:
        data = json.loads(profile.model_dump_json())
        lines = [
            f"- status: **{profile.status}**",
            f"- device: {profile.device}",
            f"- model: {profile.model}, {profile.dtype}",
            f"- {profile.description}",
            f"- error: {profile.error}",
        ]
        numbers = _number_sources(data, profile.sources)
        sources = list(dict.fromkeys(source for _, source in numbers))
        rows = [[f"`{key}`", _number(data, key), str(sources.index(source) + 1)] for key, source in numbers]
        if profile.provenance is not None:
            lines += _provenance(profile.provenance)
        listed = "\n".join(f"{at}. {source}" for at, source in enumerate(sources, 1))
        head = ["number", "value", "source"]
        parts.append("\n".join([f"## {profile.name}", "", *lines, "", table(head, rows), "", "Sources:", "", listed]))
    return "\n\n".join(["", *parts, ""])


def _number_sources(data: Any, sources: dict[str, str]) -> list[tuple[str, str]]:
    """Return every number's path and its source: its own, or that of the nearest section around it."""
    paths = [path for key in sources if "." not in key for path in _leaves(data[key], key)]
    paths += [key for key in sources if "." in key and key not in paths]
    found = []
    for path in sorted(set(paths), key=paths.index):
        near = path
        while near not in sources:
            near = near.rpartition(".")[0]
        found.append((path, sources[near]))
    return found


def _leaves(data: Any, path: str) -> list[str]:
    if path == "envelope" or not isinstance(data, dict):
        return [path]
    return [leaf for name, value in data.items() for leaf in _leaves(value, f"{path}.{name}")]


def _provenance(provenance: Any) -> list[str]:
    errors = ", ".join(f"{name} {error:.1%}" for name, error in provenance.residuals.items())
    lines = [f"- written by `{provenance.command}`", f"- median errors of the fit: {errors}"]
    if provenance.calibration_runs:
        lines.append(f"- calibrated by {len(provenance.calibration_runs)} runs: {provenance.calibration}")
    return lines


def _number(data: Any, key: str) -> str:
    for part in key.split("."):
        data = data[part]
    if isinstance(data, dict):
        return ", ".join(f"{name} {value:,}" for name, value in data.items())
    if isinstance(data, list) and data and isinstance(data[0], list):
        return ", ".join(f"{x:,.0f}: {y:g}" for x, y in data)
    if isinstance(data, list):
        return f"{data[0]:g} … {data[len(data) // 2]:g} … {data[-1]:g} ({len(data)} quantiles)"
    if isinstance(data, str):
        return data
    return f"{data:,}" if isinstance(data, int) else f"{data:g}"


if __name__ == "__main__":
    sys.exit(main())
