"""Mistakes in pools, autoscalers and tenants."""

from __future__ import annotations

from validation.mutants.mutant import Mutant

AUTOSCALER = "tests/unit/test_autoscaler.py"
BUCKETS = "tests/unit/test_token_buckets.py"
FAIR_QUEUE = "tests/unit/test_fair_queue.py"
HEADROOM = "tests/unit/test_headroom.py"
MONEY = "tests/unit/test_tenant_money.py"
OBJECTIVES = "tests/cli/test_tenant_objectives.py"
POOL_CHANGES = "tests/property/test_pool_changes.py"
POOL_LAWS = "tests/property/test_pool_laws.py"
SCALING = "tests/unit/test_scaling_policies.py"

_AUTOSCALER = "sim/world/pools/autoscaler.py"
_HEADROOM = "sim/studies/headroom.py"
_MONEY = "sim/results/fleet_costs.py"
_TIMES = "sim/world/pools/pool_times.py"

FLEETS = (
    # Pools ----------------------------------------------------------------------------------------------------------
    Mutant(
        "rerouted-with-old-times",
        _TIMES,
        "self._kind_of[self._first[request.adapter]] and not self.keeps:",
        "self._kind_of[self._first[request.adapter]]:",
        "a request of a crashed replica keeps the load times of its old pool",
        (f"{POOL_CHANGES}::test_times_are_kept_for_requests_of_earlier_chunks",),
    ),
    Mutant(
        "too-long-for-its-pool",
        _TIMES,
        "        if not self._times.fits(request, pool):",
        "        if False:",
        "a request that is too long for the pool that it goes to is let in",
        (f"{POOL_CHANGES}::test_a_request_too_long_for_its_pool_is_refused_there",),
    ),
    Mutant(
        "any-pool-up",
        "sim/world/routing/router_state.py",
        "self._of_request[request.adapter] if self._of_request else self._views[0][0]",
        "self._views[-1][0]",
        "a request is sent on because a pool is up that doesn't take it",
        (f"{POOL_CHANGES}::test_requests_wait_where_all_replicas_that_take_them_are_down",),
    ),
    Mutant(
        "spill-at-one-more",
        "sim/policies/routing/pool_router.py",
        "any(loads[replica] < full for",
        "any(loads[replica] <= full for",
        "a pool passes requests on one too late",
        (POOL_LAWS,),
    ),
    Mutant(
        "spill-to-the-previous-pool",
        "sim/policies/routing/pool_router.py",
        "for place in range(drawn, drawn + count):",
        "for place in range(drawn + count, drawn, -1):",
        "a full pool passes requests on to the one before it",
        (f"{POOL_LAWS}::test_a_full_pool_passes_requests_on_to_the_next_one_in_the_order_of_the_scenario",),
    ),
    Mutant(
        "idle-at-the-mean-price",
        "sim/results/fleet_costs.py",
        "return mean.mapped(lambda cost: cost * factor)",
        "return mean",
        "idle GPUs of all pools cost the same",
        ("tests/unit/test_replica_pools.py::test_costs_are_each_pools_price_times_its_gpus",),
    ),
    # Autoscalers ----------------------------------------------------------------------------------------------------
    Mutant(
        "oldest-replica-stops",
        _AUTOSCALER,
        "            last = max(\n",
        "            last = min(\n",
        "a warm replica stops before one that still starts",
        (AUTOSCALER,),
    ),
    Mutant(
        "drains-in-the-view",
        _AUTOSCALER,
        "        self._view.goes_down(place.index)\n        self._one_left",
        "        self._one_left",
        "the router keeps sending requests to a replica that drains",
        (AUTOSCALER,),
    ),
    Mutant(
        "replica-gone-with-requests",
        _AUTOSCALER,
        "place.down or self._fleet.inside[place.index]:",
        "place.down:",
        "a replica that drains goes before its last request",
        (AUTOSCALER,),
    ),
    Mutant(
        "gpu-load-since-the-start",
        "sim/world/pools/autoscaler.py",
        "        self._read_s, self._busy_s = now, busy_s\n",
        "",
        "an autoscaler reads the mean load of the whole run",
        (f"{AUTOSCALER}::test_gpu_load_is_that_of_the_last_interval",),
    ),
    Mutant(
        "starts-of-the-warm-up-count",
        "sim/results/fleet_metrics.py",
        "(at > max(0.0, r.bounds[0]))",
        "(at > 0.0)",
        "replicas that start or stop before the measured time are counted",
        ("tests/unit/test_scaling_metrics.py::test_what_happens_in_the_warm_up_does_not_count",),
    ),
    Mutant(
        "keda-stops-with-requests",
        "sim/policies/autoscaling.py",
        "if total == 0 and time_s",
        "if time_s",
        "without a cooldown, KEDA stops the last replica while requests wait or run",
        (f"{AUTOSCALER}::test_keda_keeps_replicas_while_requests_wait_or_run",),
    ),
    Mutant(
        "hpa-without-milli-units",
        "sim/policies/autoscaling.py",
        "return sum(values) // len(values) / self._target",
        "return sum(values) / len(values) / self._target",
        "the mean isn't cut off as Kubernetes does it, so 29 requests on 7 replicas ask for 30",
        (f"{SCALING}::test_an_hpa_computes_as_kubernetes_does",),
    ),
    Mutant(
        "hpa-rounds-down",
        "sim/policies/autoscaling.py",
        "else ceil(first * len(values))",
        "else int(first * len(values))",
        "the HPA asks for one replica too few",
        (SCALING,),
    ),
    Mutant(
        "hpa-stabilizes-down-to-the-least",
        "sim/policies/autoscaling.py",
        "        down = max([asked, ",
        "        down = min([asked, ",
        "a short dip stops replicas at once",
        (SCALING,),
    ),
    Mutant(
        "cold-start-without-warm-up",
        "sim/world/pools/autoscaler.py",
        "        return seconds + self._warm_up.seconds(rng)",
        "        return seconds",
        "the warm-up list loads in no time",
        (AUTOSCALER,),
    ),
    # Tenants --------------------------------------------------------------------------------------------------------
    Mutant(
        "cost-of-a-tenant-is-certain",
        _MONEY,
        "product(getattr(share, end), getattr(month, end))",
        "product(getattr(share, end), month.value)",
        "a tenant's cost leaves out how uncertain that of an autoscaled fleet is",
        (f"{MONEY}::test_costs_are_as_uncertain_as_those_of_an_autoscaled_fleet",),
    ),
    Mutant(
        "priority-upside-down",
        "sim/world/replica/continuous.py",
        "order = sorted(set(priorities))",
        "order = sorted(set(priorities), reverse=True)",
        "higher values go first",
        ("tests/property/test_tenant_laws.py::test_no_request_joins_while_one_of_higher_priority_waits_that_fits",),
    ),
    Mutant(
        "pauses-earn-credit",
        "sim/policies/queues/fair_queue.py",
        "            counters[tenant] = max(counters[tenant], min([counters[other] for other in self.deferred]))",
        "            counters[tenant] = counters[tenant]",
        "a tenant that paused takes the whole service for a while",
        (FAIR_QUEUE,),
    ),
    Mutant(
        "answers-free-of-charge",
        "sim/policies/queues/fair_queue.py",
        "self.counters[tenant] += OUTPUT_WEIGHT * tokens",
        "self.counters[tenant] += 0 * tokens",
        "tokens of answers don't count",
        (FAIR_QUEUE,),
    ),
    Mutant(
        "bucket-without-bottom",
        "sim/policies/token_bucket.py",
        "        if tokens > self._level:",
        "        if tokens > self._burst:",
        "a bucket lets through what it doesn't have",
        (BUCKETS,),
    ),
    Mutant(
        "bucket-overflows",
        "sim/policies/token_bucket.py",
        "self._level = min(self._burst, self._level + self._rate * (now - self._at_s))",
        "self._level = self._level + self._rate * (now - self._at_s)",
        "a bucket holds more than its burst after a pause",
        (BUCKETS,),
    ),
    Mutant(
        "margin-adds-the-cost",
        _MONEY,
        "_sum([(revenue, 1.0), (cost, -1.0)])",
        "_sum([(revenue, 1.0), (cost, 1.0)])",
        "a margin is revenue and cost together",
        (MONEY,),
    ),
    Mutant(
        "margin-ends-mixed-up",
        _MONEY,
        "(getattr(metric, lower if factor >= 0 else upper), factor)",
        "(getattr(metric, lower), factor)",
        "the interval of a margin is too narrow",
        (MONEY,),
    ),
    Mutant(
        "tenant-name-cut-short",
        "sim/results/slo_terms.py",
        'removeprefix(_TENANTS).rpartition(".")',
        'removeprefix(_TENANTS).partition(".")',
        "a term of a tenant whose name has a dot is another tenant's",
        (f"{OBJECTIVES}::test_names_of_terms_are_read_back",),
    ),
    Mutant(
        "plans-without-tenants",
        "sim/results/slo_terms.py",
        "for tenant in scenario.tenants\n",
        "for tenant in scenario.tenants[:0]\n",
        "plans and headroom go by the fleet's SLO alone",
        (OBJECTIVES,),
    ),
    # Token buckets --------------------------------------------------------------------------------------------------
    Mutant(
        "sent-again-pays-again",
        "sim/world/dispatcher.py",
        "        self.view.refresh()\n        self.send(request)",
        "        self.view.refresh()\n        self.take(request)",
        "a request that is sent again after a crash takes its tokens twice",
        (f"{BUCKETS}::test_a_request_that_is_sent_again_after_a_crash_takes_no_more_tokens",),
    ),
    Mutant(
        "bucket-is-compute",
        "sim/results/capacity.py",
        "        if behind_buckets and len(r.held):",
        "        if False:",
        "the queue in front of a token bucket is taken for one of the replicas",
        (f"{BUCKETS}::test_a_bucket_is_a_limit_of_its_own",),
    ),
    Mutant(
        "buckets-in-saturation",
        "sim/studies/short_runs.py",
        'tenant.model_copy(update={"bucket": None})',
        "tenant",
        "the most that token buckets let pass is taken for what full batches serve",
        (f"{HEADROOM}::test_what_a_bucket_holds_or_refuses_is_no_load_of_the_replicas",),
    ),
    # Headroom -------------------------------------------------------------------------------------------------------
    Mutant(
        "correction-inverted",
        _HEADROOM,
        "min(max(exact / own,",
        "min(max(own / exact,",
        "what a short run has too little of counts for even less",
        (f"{HEADROOM}::test_what_a_short_run_has_too_little_of_is_made_up_for",),
    ),
    Mutant(
        "saturation-over-all-answers",
        _HEADROOM,
        "first, last = int(0.3 * len(times)), int(0.7 * len(times))",
        "first, last = 0, len(times) - 1",
        "batches that fill and empty make the fleet seem slower",
        (f"{HEADROOM}::test_the_throughput_is_that_of_full_batches",),
    ),
    Mutant(
        "limit-at-saturation",
        _HEADROOM,
        "self._measure(edge.hi, max(FINE, self._full))",
        "self._measure(32.0, max(FINE, self._full))",
        "what limits at the headroom is said by a run far beyond it",
        (f"{HEADROOM}::test_what_limits_is_said_by_a_run_at_the_headroom",),
    ),
    Mutant(
        "short-runs-without-warm-up",
        "sim/studies/short_runs.py",
        "return first / requests, requests",
        "return 0.0, requests",
        "queues that fill at first make traffic seem to fit",
        (f"{HEADROOM}::test_short_runs_leave_out_their_first_fifth",),
    ),
    Mutant(
        "bursts-of-tenants-unseen",
        "sim/studies/short_runs.py",
        "sum(step.time for step in tenant.steps) for tenant in self.scenario.tenants",
        "0.0 for tenant in self.scenario.tenants",
        "a tenant's burst every 20 minutes is in no short run",
        (f"{HEADROOM}::test_a_tenants_rare_bursts_decide",),
    ),
)
