"""Mistakes in what takes time: the hot paths of ``sim/world``."""

from __future__ import annotations

from mutant import Mutant

CACHE_START = "tests/unit/test_cache_start.py"
ENGINES = "tests/unit/test_engines.py"
ENGINE_TWINS = "tests/property/test_engine_leaping.py"
LAWS = "tests/property/test_laws.py"
LEAPING = "tests/property/test_leaping.py"
CRASHES = "tests/unit/test_crashes.py"
SPEED = "tests/unit/test_storage_speed.py"
AT_ONE_INSTANT = f"{LEAPING}::test_leaps_equal_steps_where_much_happens_at_one_instant"
FIXED = f"{LEAPING}::test_the_engine_without_batches_agrees_with_its_twin"
VLLM = f"{LEAPING}::test_leaps_equal_steps_of_vllm"

_BATCH = "sim/world/replica/continuous.py"
_FLEET = "sim/world/fleet.py"
_LOADER = "sim/world/replica/loader.py"
_PROTECTED = "sim/world/replica/modes/protected.py"
_STORAGE = "sim/world/faults/storage_faults.py"

WORLD = (
    # Steps and leaps ------------------------------------------------------------------------------------------------
    Mutant(
        "elapsed-off-by-one-growth",
        _BATCH,
        "self._growth * (steps * (steps - 1) / 2)",
        "self._growth * (steps * (steps + 1) / 2)",
        "the first step of a leap has not grown yet",
        (LEAPING,),
    ),
    Mutant(
        "leap-without-growth",
        _BATCH,
        "return now + self._elapsed(self._steps)",
        "return now + self._load_s + self._steps * self._first",
        "all steps of a leap take as long as its first",
        (LEAPING,),
    ),
    Mutant(
        "boundary-of-this-instant-is-too-late",
        _BATCH,
        "while started + self._elapsed(steps) <= now:",
        "while started + self._elapsed(steps) < now:",
        "requests that arrive at the instant of a boundary join at the next one",
        ("tests/property/test_boundaries.py", LEAPING),
    ),
    Mutant(
        "load-end-misses-its-boundary",
        _BATCH,
        "if may_join_now and steps > 1 and",
        "if not may_join_now and steps > 1 and",
        "a load that ends on a boundary is there for it",
        ("tests/property/test_boundaries.py", LEAPING),
    ),
    Mutant(
        "leap-cut-one-step-late",
        _BATCH,
        "steps = self._steps_until(now, may_join_now)\n",
        "steps = self._steps_until(now, may_join_now) + 1\n",
        "a request joins one boundary later than it could",
        (LEAPING,),
    ),
    Mutant(
        "pauses-counted-twice",
        _BATCH,
        "decoding - self._log_pauses() if scheduler.paused else decoding",
        "decoding if not scheduler.paused or self._log_pauses() else decoding",
        "a gap that a prefill prolongs counts as an ordinary one too",
        (ENGINES, ENGINE_TWINS),
    ),
    Mutant(
        "gaps-across-preemption-lost",
        _BATCH,
        "self.recorder.gaps(scheduler.recompute_gaps, ",
        "(scheduler.recompute_gaps, ",
        "the longest gaps of all are missing",
        (LEAPING, LAWS),
    ),
    Mutant(
        "earlier-steps-block-loads",
        _BATCH,
        "mode.before_step(scheduler, now) + blocked_s if mode.prepares_steps else blocked_s",
        "mode.before_step(scheduler, now) if mode.prepares_steps else 0.0",
        "a swap that blocks the engine takes no time",
        ("tests/property/test_rollout_cases.py",),
    ),
    Mutant(
        "first-in-last-out",
        "sim/world/replica/fixed.py",
        "self._queue.popleft()",
        "self._queue.pop()",
        "the newest request is served first",
        (FIXED,),
    ),
    Mutant(
        "boundaries-before-load-ends",
        "sim/world/clock.py",
        "LOAD_DONE: Final = 1\nBOUNDARY: Final = 2\n",
        "LOAD_DONE: Final = 2\nBOUNDARY: Final = 1\n",
        "a load that ends on a boundary is there for it",
        (AT_ONE_INSTANT, LEAPING),
    ),
    Mutant(
        "arrivals-before-boundaries",
        "sim/world/clock.py",
        "BOUNDARY: Final = 2\nARRIVAL: Final = 3\n",
        "BOUNDARY: Final = 3\nARRIVAL: Final = 2\n",
        "requests that arrive at the instant of a boundary wait for the next one",
        (AT_ONE_INSTANT, LEAPING),
    ),
    # Loads ----------------------------------------------------------------------------------------------------------
    Mutant(
        "joined-load-is-a-miss",
        _PROTECTED,
        "else:\n            request.outcome = DELAYED_HIT if self.loader.request_load(request) else MISS",
        "else:\n            request.outcome = (self.loader.request_load(request), MISS)[1]",
        "a request that joins a load makes none",
        (FIXED, LEAPING),
    ),
    Mutant(
        "joined-load-is-a-miss-at-admission",
        _PROTECTED,
        '"""\n        request.outcome = DELAYED_HIT if self.loader.request_load(request) else MISS',
        '"""\n        request.outcome = (self.loader.request_load(request), MISS)[1]',
        "a request that joins a load makes none",
        (LEAPING,),
    ),
    Mutant(
        "one-load-for-all",
        _PROTECTED,
        "if self._gpu.state[request.adapter] == RESIDENT:",
        "if load_s > 0:",
        "requests with different adapters each load their own",
        (LEAPING,),
    ),
    Mutant(
        "loads-of-a-step-at-once",
        _PROTECTED,
        "load_s += self._load(request, now + load_s)",
        "load_s = max(load_s, self._load(request, now))",
        "loads of one step follow each other",
        (LEAPING,),
    ),
    Mutant(
        "vllm-joined-load-is-a-miss",
        "sim/world/replica/modes/vllm_lru_mode.py",
        "MISS if first[request.adapter] is request else DELAYED_HIT",
        "MISS",
        "two requests that bring in one adapter make one load",
        (VLLM,),
    ),
    Mutant(
        "load-overtakes-the-queue",
        _LOADER,
        "if channel.queue or channel.busy == channel.loaders or not",
        "if channel.busy == channel.loaders or not",
        "a load that finds room passes the first one, which waits for room",
        (FIXED, LEAPING),
    ),
    Mutant(
        "one-loader-too-many",
        _LOADER,
        "queue and channel.busy < channel.loaders",
        "queue and channel.busy <= channel.loaders",
        "more loads share the storage than there are loaders",
        (LEAPING,),
    ),
    Mutant(
        "wait-since-the-load-began",
        _LOADER,
        "request.load_wait_s = now - asked_s",
        "request.load_wait_s = now - started",
        "the loader's queue is part of the wait",
        (LEAPING,),
    ),
    Mutant(
        "host-hit-is-not-a-use",
        _LOADER,
        "self.host.touch(request.adapter)",
        "self.host.holds(request.adapter)",
        "what host memory serves all the time leaves it first",
        (LEAPING,),
    ),
    Mutant(
        "no-copy-in-host-memory",
        _LOADER,
        "if tier == FROM_STORAGE and self._has_host:",
        "if tier == FROM_HOST:",
        "what comes from storage leaves a copy in host memory",
        (LEAPING,),
    ),
    Mutant(
        "room-taken-when-asked",
        _LOADER,
        "        load.waiting.append(request)\n        if channel.queue",
        "        load.waiting.append(request)\n"
        "        while self._cache.idle_weight and not self._cache._fits(adapter):\n"
        "            self._cache._evict_next()\n        if channel.queue",
        "a load evicts when it begins, not while it queues",
        (LEAPING,),
    ),
    Mutant(
        "storage-tried-before-host",
        _LOADER,
        "self._start(self._from_host)\n        self._start(self._storage)",
        "self._start(self._storage)\n        self._start(self._from_host)",
        "where room appears, loads from host memory go first",
        (LEAPING, ENGINE_TWINS),
    ),
    Mutant(
        "room-not-noticed",
        "sim/world/replica/server.py",
        "if cache.release(request.adapter):",
        "if not cache.release(request.adapter):",
        "loads that wait for room wait although a request has left",
        (FIXED, LEAPING),
    ),
    Mutant(
        "replica-never-empties",
        "sim/world/replica/server.py",
        "inside[index] -= 1\n            self.inside_area += now\n",
        "self.inside_area += now\n",
        "routers see requests that have left",
        (FIXED, LEAPING),
    ),
    Mutant(
        "fetch-is-no-miss",
        "sim/world/replica/host_fill.py",
        "max(request.outcome, outcome)",
        "request.outcome",
        "an adapter that was fetched to host memory counts as a hit",
        (ENGINES, ENGINE_TWINS),
    ),
    Mutant(
        "fetch-wait-forgotten",
        "sim/world/replica/host_fill.py",
        "request.load_wait_s += wait_s",
        "request.load_wait_s += 0.0",
        "the wait for host memory is missing",
        (ENGINES, ENGINE_TWINS),
    ),
    Mutant(
        "prefetch-out-of-order",
        "sim/world/replica/prefetch.py",
        "in sorted(absent)",
        "in sorted(absent, reverse=True)",
        "the last in the queue gets its adapter first",
        (CACHE_START, f"{LEAPING}::test_leaps_equal_steps_where_loads_come_ahead_of_time"),
    ),
    Mutant(
        "prefetch-evicts-what-others-want",
        "sim/world/replica/prefetch.py",
        "loader.load_ahead(request, wanted)",
        "loader.load_ahead(request, ())",
        "a load ahead takes the adapter of the next in the queue",
        (CACHE_START, f"{LEAPING}::test_leaps_equal_steps_where_loads_come_ahead_of_time"),
    ),
    Mutant(
        "reloads-from-the-wrong-tier",
        "sim/world/times.py",
        "again_from_storage(adapter) if tier == FROM_STORAGE",
        "again_from_storage(adapter) if tier != FROM_STORAGE",
        "vLLM's cascades reload from host memory",
        ("tests/unit/test_reloads_and_versions.py", "tests/property/test_records.py", VLLM),
    ),
    Mutant(
        "slow-windows-do-not-multiply",
        _STORAGE,
        "speed /= windows[i][2]",
        "speed = 1.0 / windows[i][2]",
        "two slow times at once are as slow as one",
        (SPEED,),
    ),
    Mutant(
        "one-retry-too-few",
        _STORAGE,
        "len(spans) > failed.retries",
        "len(spans) >= failed.retries",
        "retries come after the first attempt",
        (CRASHES, SPEED),
    ),
    Mutant(
        "pauses-do-not-double",
        _STORAGE,
        "_pause_s(failed.backoff_s, len(spans) - 1)",
        "_pause_s(failed.backoff_s, 0)",
        "each pause between attempts is twice as long as the one before",
        (CRASHES, SPEED),
    ),
    # Modes ----------------------------------------------------------------------------------------------------------
    Mutant(
        "a-cycle-ends-within-a-leap",
        _BATCH,
        "if change_s < math.inf:",
        "if change_s < 0:",
        "an adapter keeps its place beyond its cycle",
        (ENGINES, ENGINE_TWINS),
    ),
    Mutant(
        "idle-adapters-keep-kv-blocks",
        "sim/world/replica/modes/unified.py",
        "self._unified.shrink()",
        "pass",
        "adapters that are not in use leave before a step that needs their blocks",
        (ENGINES, ENGINE_TWINS),
    ),
    Mutant(
        "discards-after-prefills-too",
        _PROTECTED,
        "        if decoding:",
        "        if True:",
        "idle adapters leave when a decode step ends a request, not after a prefill alone",
        (ENGINES, ENGINE_TWINS),
    ),
    Mutant(
        "a-failed-load-keeps-its-adapter",
        _BATCH,
        "            if self.cache.release(request.adapter):\n                self.mode.room_appeared()\n"
        "            self.fail(request)\n",
        "            self.fail(request)\n",
        "an adapter whose load failed counts as in use for ever",
        (CRASHES, "tests/property/test_faults.py"),
    ),
    # The fleet ------------------------------------------------------------------------------------------------------
    Mutant(
        "warm-up-not-dropped",
        _FLEET,
        "first = int(total * self._window.warmup)",
        "first = 0",
        "misses of an empty cache are measured",
        ("tests/unit/test_sections.py",),
    ),
    Mutant(
        "warm-up-of-a-duration-not-dropped",
        _FLEET,
        "np.linspace(window.warmup * window.end_s, window.end_s",
        "np.linspace(0.0, window.end_s",
        "misses of an empty cache are measured",
        ("tests/unit/test_sections.py",),
    ),
    Mutant(
        "sections-by-time",
        _FLEET,
        "self.recorder.mark(float(chunk.arrival_s[marks.pop(0) - chunk.first]))",
        "self.recorder.mark(float(chunk.arrival_s[-1]) * marks.pop(0) / (chunk.first + len(chunk)))",
        "in bursty traffic a section of a run has few requests or many",
        ("tests/unit/test_sections.py",),
    ),
    Mutant(
        "longest-request-refused",
        _FLEET,
        "chunk.prompt_tokens + chunk.output_tokens > self",
        "chunk.prompt_tokens + chunk.output_tokens >= self",
        "a request that fits exactly is served",
        (LEAPING,),
    ),
    Mutant(
        "router-sees-the-present",
        "sim/world/routing/router_views.py",
        "if interval_s == 0:",
        "if interval_s >= 0:",
        "a stale view is never stale",
        ("tests/unit/test_routing.py",),
    ),
    Mutant(
        "extra-bytes-of-the-newest",
        "sim/world/rollouts/duplicate_version_bytes.py",
        "self._sizes[max(there)]",
        "self._sizes[min(there)]",
        "the newest version is the one that stays",
        ("tests/unit/test_reloads_and_versions.py", "tests/property/test_rollout_laws.py"),
    ),
    Mutant(
        "reserved-blocks-are-used",
        "sim/world/gpu_memory.py",
        "tokens // fleet.block_size - fleet.reserved_kv_blocks)",
        "tokens // fleet.block_size)",
        "vLLM keeps a block for itself",
        (VLLM,),
    ),
)
