"""What is behind the numbers: what is modelled, what is assumed, and where every input came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.tables.metric_tables import wall_words
from sim.results.point import Point
from sim.spec.engines import DEFAULT_ENGINE, ENGINES, preset_value


def _part(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def engine(manifest: Mapping[str, Any]) -> str:
    """Return the engine of the scenario."""
    return str(_part(_part(manifest, "scenario"), "fleet").get("engine", DEFAULT_ENGINE))


def is_assumed(manifest: Mapping[str, Any]) -> bool:
    """Return whether the costs come from a profile that was assumed, not measured."""
    return _part(manifest, "profile").get("status") == "assumed"


def modelled(manifest: Mapping[str, Any]) -> list[str]:
    """Return what the simulation works out request by request."""
    found = ["Every request on its own: arrival, router, cache lookup, load, queue, service, end."]
    if engine(manifest) == "fixed":
        found.append("Each replica serves one request at a time, first ready first served, for the given service time.")
    else:
        found += _batching(manifest)
    touched = _filled(manifest, "cache", "eviction") == "vllm-lru"
    found.append(
        "The adapter cache by its eviction policy: a hit is resident, a delayed hit joins a load under way, a miss "
        "starts a load; "
        + (
            "as in vLLM, an adapter in use may be evicted too, and is loaded again by the next step."
            if touched
            else "an adapter in use is never evicted."
        )
    )
    found.append(
        "Loads inside the step that needs them, one after the other; the whole batch waits."
        if _filled(manifest, "storage", "mode") == "blocking"
        else "Loaders as servers with a queue of their own; one load in flight per adapter."
    )
    return found + _full_models(_part(manifest, "scenario")) + _changing(_part(manifest, "scenario"))


def _full_models(scenario: Mapping[str, Any]) -> list[str]:
    """Return what is modelled of full fine-tunes, where there are some."""
    full = _part(_part(scenario, "fleet"), "full_models")
    if not full:
        return []
    if full.get("serve") != "swap":
        return ["Full models on replicas of their own, which hold them from the start and serve nothing else."]
    return [
        "Full models on a pool of replicas: a model that isn't loaded waits until another has drained. Then it is "
        "loaded whole, and its replica runs nothing meanwhile."
    ]


def _changing(scenario: Mapping[str, Any]) -> list[str]:
    """Return what is modelled of rollouts and faults, where there are some."""
    found = []
    if scenario.get("rollouts"):
        found.append(
            "Which version of an adapter lies where (storage, host, GPU), which one computes each token, and when each "
            "router or replica learns of a new one."
        )
    if scenario.get("faults"):
        found.append(
            "Faults at their times. Which requests each one affects follows from the seed and the request's number, so "
            "it is the same in every design."
        )
    return found


def _batching(manifest: Mapping[str, Any]) -> list[str]:
    chunks = _filled(manifest, "fleet", "chunked_prefill") is not False
    alone = _filled(manifest, "fleet", "batching") == "prefill-first"
    ahead = _filled(manifest, "fleet", "kv_check") in ("whole-answer", "peak")
    return [
        "Each replica batches continuously: requests join and leave at step boundaries, prompts are "
        + ("split into chunks" if chunks else "computed whole")
        + (", in steps of their own" if alone else "")
        + ", and a step lasts as long as its tokens, sequences, KV cache and distinct adapters cost.",
        "KV memory block by block, kept for whole answers before a request may join: no request is preempted."
        if ahead
        else "KV memory block by block, with preemption of the newest request when blocks run out.",
    ]


def _filled(manifest: Mapping[str, Any], section: str, key: str) -> Any:
    """Return a value of the scenario, or what its engine's preset fills in."""
    given = _part(_part(manifest, "scenario"), section).get(key)
    name = engine(manifest)
    return given if given is not None or name not in ENGINES else preset_value(name, f"{section}.{key}")


def assumed(manifest: Mapping[str, Any]) -> list[str]:
    """Return what the simulation takes for granted."""
    scenario = _part(manifest, "scenario")
    workload = _part(scenario, "workload")
    found = ["The network and the router take no time; what a request spends in the front end is the same for each."]
    if tool := _part(workload, "client").get("tool"):
        found.append(f"Requests are a benchmark's ({tool}). Real users come in sessions, and then fewer requests miss.")
    elif not workload.get("trace"):
        found += _traffic(workload, scenario.get("tenants") or ())
    if _part(scenario, "storage").get("load"):
        found.append("Loads take the time that the scenario gives, however many run at once.")
    found += _base_weights(_part(scenario, "adapters"))
    if not scenario.get("faults"):
        found.append("No replica, loader or storage fails, and every request reaches the adapter that it names.")
    return found


def _base_weights(adapters: Mapping[str, Any]) -> list[str]:
    """Return what quantised base weights take for granted."""
    name = adapters.get("base_quantization", "bf16")
    if name == "bf16":
        return []
    return [
        f"The base model's linear layers are kept in {name}. The effect on steps comes from the profile where it has "
        "such steps, and else from a factor that was not measured on this device (see Notes). The effect on "
        "answers is not simulated."
    ]


_PROCESSES = {
    "poisson": "a Poisson process at a constant rate",
    "gamma": "gamma gaps at a constant mean rate",
    "bursty": "bursts: gamma gaps at a constant mean rate",
    "weibull": "Weibull gaps at a constant mean rate",
    "on-off": "an on-off process at a constant mean rate",
    "piecewise": "a rate that repeats a sequence of steps",
    "diurnal": "a rate that follows a sine",
    "mmpp": "a rate that jumps between states at random times",
}


def _traffic(workload: Mapping[str, Any], tenants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what generated traffic takes for granted."""
    law = _part(workload, "popularity").get("law", "uniform")
    arrivals = _part(workload, "arrivals")
    process = arrivals.get("process")
    alone = arrivals.get("per") == "adapter"
    found = []
    if workload.get("sessions") is not None:
        found.append(f"Requests come in sessions of one adapter each, chosen independently ({law} popularity).")
    elif alone:
        found.append(f"Every adapter has arrivals of its own, independent of all others ({law} popularity).")
    elif law != "cyclic":
        found.append(
            f"Requests choose their adapter independently ({law} popularity). Real users come in sessions, and "
            "then fewer requests miss."
        )
    if process == "closed":
        found.append(
            "Requests come from a closed loop: each client sends its next request once the last one is answered, so a "
            "slower fleet gets fewer of them. Latencies of users who don't wait for each other can be far longer."
        )
    elif process:
        what = "Sessions begin" if workload.get("sessions") is not None else "Requests arrive"
        own = {"steps": _PROCESSES["piecewise"], "cv": _PROCESSES["gamma"]}
        others = [f"those of {each.get('name')} by {own[key]}" for each in tenants for key in own if each.get(key)]
        found.append(f"{what} by {'; '.join([_PROCESSES.get(process, process), *others])}.")
    if not workload.get("drift") and not workload.get("churn"):
        found.append("Popularity stays as it is: no adapter comes, goes or changes its place.")
    return found


def profile_words(manifest: Mapping[str, Any]) -> str:
    """Return where step and load costs come from and how far they can be trusted."""
    profile = _part(manifest, "profile")
    if not profile:
        return "None: engine fixed takes its service time from the scenario."
    status = str(profile.get("status", "unknown"))
    trust = {
        "assumed": "assumed: these costs were not measured",
        "derived": "derived from published measurements",
        "measured": "measured on the device it names",
    }.get(status, status)
    error = profile.get("error")
    return f"{profile.get('name', 'unnamed')}, {trust}{f'; their error: {error}' if error else ''}."


def intervals(manifest: Mapping[str, Any]) -> str:
    """Return how the intervals are made."""
    return (
        f"Intervals are 95 %. All measured requests ({_replications(manifest)}) are cut into at least 20 sections; "
        "Student's t over the sections gives the half-width around the value of the whole sample. Requests of one run "
        "wait in the same queue, so they are never treated as independent: the effective sample size says how many "
        "independent ones they are worth. Where that is too small or not known, the spread between replications is "
        "taken as well, from five of them on, and the wider interval is printed. A value is unsettled where its "
        "half-width is above 10 %, its effective sample size is too small, or the loader or server is loaded above "
        "95 %; below 1,000 measured requests no p99 is given."
    )


def calibration(manifest: Mapping[str, Any], points: Sequence[Point]) -> str:
    """Return how the calibration intervals are made; nothing where the profile has no draws."""
    drawn = next((point.calibration for point in points if point.calibration), None)
    if drawn is None:
        return ""
    draws, of = drawn["draws"], drawn["of"]
    return (
        f"The profile {_part(manifest, 'profile').get('name', '')} holds {of:,} draws of its step and load costs: "
        "other values that its sources allow (loraplan profiles show). "
        f"{'All' if draws == of else f'{draws} of them, evenly chosen,'} were simulated, each on the traffic of one "
        "replication, and compared with the profile's own costs on that traffic. The root mean square difference (of "
        "logarithms for times and rates, of plain values for shares), times Student's t, gives the 95 % calibration "
        "interval. It shows what better measurements could change; the 95 % interval shows what a longer simulation "
        "could. The two are independent, and the verdict adds their widths as squares. Errors in the form of the cost "
        "model are in neither."
    )


def _replications(manifest: Mapping[str, Any]) -> str:
    run = _part(_part(manifest, "scenario"), "run")
    count = manifest.get("replications", run.get("replications", 5))
    return "1 replication" if count == 1 else f"{count} replications"


def provenance(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return label and text of every fact about how this run was made."""
    run = _part(_part(manifest, "scenario"), "run")
    versions = ", ".join(f"{name} {version}" for name, version in _part(manifest, "versions").items())
    done, total = manifest.get("points_done"), manifest.get("points_total")
    rows = [
        ("status", f"{manifest.get('status', 'unknown')}, {done} of {total} points"),
        ("profile", profile_words(manifest)),
        ("seed", f"{manifest.get('seed')}, {_replications(manifest)}, warm-up {run.get('warmup', '5%')} not measured"),
        ("started", str(manifest.get("started_at", "unknown"))),
        ("took", wall_words(manifest)),
        ("versions", versions or "unknown"),
        ("scenario", f"{manifest.get('scenario_source', '')}, hash {str(manifest.get('scenario_hash', ''))[:16]}"),
    ]
    rows += [("input", f"{path}, sha256 {str(digest)[:16]}…") for path, digest in _part(manifest, "inputs").items()]
    profile = _part(manifest, "profile")
    if profile.get("sha256"):
        rows.append(("profile hash", f"{str(profile['sha256'])[:16]}…"))
    return rows


def state_note(manifest: Mapping[str, Any]) -> str:
    """Return a sentence on a run that isn't complete, else nothing."""
    status = manifest.get("status")
    done, total = manifest.get("points_done", 0), manifest.get("points_total", 0)
    if status == "finished" and done == total:
        return ""
    what = {"running": "is still running", "interrupted": "was interrupted", "failed": "failed"}.get(
        str(status), "ended"
    )
    if manifest.get("kind") == "plan":
        return f"This plan {what} and has no answer yet. What it has simulated is kept: the same command goes on."
    return f"This run {what}: {done} of {total} points are finished, and only those are shown."


def assumed_note(manifest: Mapping[str, Any]) -> str:
    """Return what costs that were not measured are good for; empty where they were."""
    if not is_assumed(manifest):
        return ""
    name = _part(manifest, "profile").get("name", "")
    return (
        f"Step, load and memory costs come from the profile {name}, whose numbers are assumed, not measured. "
        "Use them to compare designs, not to predict times on your GPU; for that, calibrate a profile."
    )
