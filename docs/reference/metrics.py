"""The table of metrics, in the order in which tables print them."""

from __future__ import annotations

from reference.markdown import table

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
        "`storage.loaders` × replicas. Where loads block steps, copies from host memory count as well: it is the share "
        "of the time in which replicas load instead of computing. Where loaders fetch to host memory beside the steps, "
        "the busier of both counts. Loads of whole models do not count.",
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


def metric_table() -> str:
    """Return one row a metric: name, words, unit, definition, what it is taken over, interval."""
    from reports.formatting import METRIC_WORDS
    from sim.results.point import UNITS
    from sim.spec.scenario import Slo

    if list(METRICS) != list(UNITS):
        raise SystemExit("docs/reference/metrics.py and sim/results/point.py do not name the same metrics")
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
