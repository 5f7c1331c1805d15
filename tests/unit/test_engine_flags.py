"""Options of engines: what a scenario has for each, what a command line says of one, and policies of scheduling."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from scenario_samples import BASE, base, refusal, write
from strategies import build

from sim.errors import InputError
from sim.spec.engine_flags.command_lines import (
    as_started,
    beyond_flags,
    engine_flags,
    model_to_fill_in,
    read_command,
    why_no_flags,
)
from sim.spec.engine_flags.options import Flag, flag_hint, flag_tables
from sim.spec.engines import ENGINES, sglang_share, to_mem_fraction_static
from sim.spec.files.problems import known_keys
from sim.spec.needs import value_of, words_of
from sim.spec.profile import load_profile
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import bundled_scenarios, load_scenario
from sim.world.build import build_world
from sim.world.memory.gpu_memory import memory_use

__all__ = ["base"]  # a fixture, used by its name

KV = 50_000
"""Tokens of KV cache that replicas had."""

EVERY = [
    pytest.param(engine.name, flag, id=f"{engine.name} {flag.name}")
    for engine in flag_tables()
    for flag in engine.flags
]


# The table


def test_a_base_model_in_short_says_what_to_put_in_its_place() -> None:
    short = load_scenario("quickstart", ["adapters.base_model=llama-3.1-8b"]).scenario
    assert model_to_fill_in(short) == [
        "MODEL, the repository or path of llama-3.1-8b (adapters.base_model: OWNER/NAME writes it)"
    ]
    whole = load_scenario("quickstart", ["adapters.base_model=meta-llama/Llama-3.1-8B"]).scenario
    assert model_to_fill_in(whole) == []


def test_engines_with_presets_have_their_options_in_the_table() -> None:
    named = {name.replace("-", "").lower() for name in flag_tables().names}
    presets = {re.sub(r"[-.0-9]", "", engine.name) for engine in ENGINES if engine.name not in ("continuous", "fixed")}
    assert named == presets
    written = {name for engine in ENGINES for name in engine.flags}
    assert written == {engine.name for engine in flag_tables() if engine.command}


@pytest.mark.parametrize(("engine", "flag"), EVERY)
def test_an_option_has_a_key_that_exists_or_says_why_not(engine: str, flag: Flag) -> None:
    assert set(flag.keys) <= set(known_keys(Scenario))
    assert flag.keys or flag.about
    for setting in flag.sets:
        key, colon, value = setting.partition(": ")
        if colon:
            settings = ["fleet.engine=continuous", "cache.host=null", f"{key}={value}"]
            assert words_of(value_of(load_scenario("quickstart", settings, check_points=False).scenario, key)) == value


@pytest.mark.parametrize(("engine", "flag"), EVERY)
def test_an_option_is_known_in_every_spelling(engine: str, flag: Flag) -> None:
    hint = flag_hint(flag.name)
    assert all(setting in hint for setting in flag.sets)
    assert engine in hint
    word = flag.name.strip("-")
    camel = re.sub(r"[-_]([a-z])", lambda match: match[1].upper(), word)
    for spelled in (*flag.also, word.replace("-", "_"), word.replace("_", "-"), f"--{word}", word.upper(), camel):
        for key in (spelled, f"fleet.{spelled}", f"cache.gpu.{spelled}"):
            found = flag_hint(key)
            assert found is not None, key
            assert engine in found, key
            assert all(setting in found for setting in flag.sets), key


def test_a_name_means_one_option_of_an_engine() -> None:
    for engine in flag_tables():
        names = [name.strip("-").replace("_", "-") for flag in engine.flags for name in (flag.name, *flag.also)]
        assert len(names) == len(set(names)), engine.name


# Errors


def test_a_point_and_a_plan_are_answered_too(base: Path) -> None:
    with pytest.raises(InputError, match="sweep: max_loras: unknown key; --max-loras of vLLM and TensorRT-LLM is"):
        load_scenario("base.yaml").with_values({"max_loras": 4})


@pytest.mark.parametrize("word", ["", ".", "-", "--", "__", "…", "é" * 9, "max loras!", "x" * 100_000, "\n", "a.b.c.d"])
def test_what_is_no_option_has_no_answer(word: str) -> None:
    assert flag_hint(word) is None
    assert flag_hint("fleet", {word: 1}) is None


def test_an_answer_stays_short_and_names_no_option_twice() -> None:
    everything = {name: 1 for engine in flag_tables() for flag in engine.flags for name in (flag.name, *flag.also)}
    hint = flag_hint("args", everything)
    assert len(hint) < 800
    assert flag_hint("args", {"max_loras": 1, "--max-loras": 2}) == flag_hint("max_loras")


def test_keys_of_a_scenario_are_never_taken_for_an_option(base: Path) -> None:
    leaves = {key.rpartition(".")[2] for key in known_keys(Scenario)}
    shared = leaves & {flag.name.strip("-").replace("-", "_") for engine in flag_tables() for flag in engine.flags}
    assert {"max_num_seqs", "max_model_len", "block_size"} <= shared
    for leaf in shared - {"dtype", "prefetch"}:
        path = write(base.parent / "odd.yaml", f"{BASE}faults: [{{kind: crash, {leaf}: 1}}]\n")
        assert f"did you mean '{next(key for key in known_keys(Scenario) if key.endswith(f'.{leaf}'))}'" in refusal(
            path
        )


# Command lines


@pytest.mark.parametrize(("engine", "option"), [("vllm", "--tensor-parallel-size 2"), ("sglang", "--tp-size 2")])
def test_a_profile_of_several_gpus_says_so_in_the_command_line(engine: str, option: str) -> None:
    settings = ["fleet.profile=h200/llama-3.1-70b-tp2/vllm-0.24.0", f"fleet.engine={engine}"]
    (line,) = engine_flags(load_scenario("quickstart", settings, check_points=False).scenario, KV).values()
    assert option in line


@pytest.mark.slow
def test_nothing_to_copy_is_given_for_an_engine_that_was_not_simulated() -> None:
    """Over all bundled scenarios and engines: a command line is that of the engine, and says what was simulated."""
    given, refused, seen = set(), set(), set()
    for bundled in bundled_scenarios():
        for engine in ENGINES:
            try:
                found = load_scenario(bundled, [f"fleet.engine={engine.name}"], check_points=False).scenario
            except InputError:
                continue  # a scenario about what this engine doesn't have
            lines, why = engine_flags(found, KV), why_no_flags(found)
            assert bool(lines) != bool(why), (bundled, engine.name)
            assert set(lines) <= set(engine.flags), (bundled, engine.name)
            (given if lines else refused).add(engine.name)
            for name, line in lines.items():
                assert engine.name.startswith(name.lower())
                seen |= {(name, option) for option in _said(name, line, found)}
    assert given == {engine.name for engine in ENGINES if engine.flags}
    assert {"continuous", "s-lora", "lorax", "tensorrt-llm"} <= refused - given
    printed = {
        (engine.name, flag.name) for engine in flag_tables() for flag in engine.flags if flag.written is not None
    }
    unset = {  # by every bundled scenario
        "--num-gpu-blocks-override",
        "--context-length",
        "--enable-lora-overlap-loading",
        "--enable-mixed-chunk",
        "--max-loaded-loras",
        "--disable-radix-cache",
        "--mem-fraction-static",
        "--tp-size",
        "--fully-sharded-loras",
        "--lora-target-modules",  # of mixtures of experts alone (test_expert_adapters.py)
        "--enable-moe-shared-loras",
        "--enable-expert-parallel",
        "--scheduling-policy",
        "--scheduler-reserve-full-isl",
        "--prefill-schedule-interval",
        "--schedule-conservativeness",
        "--disable-overlap-schedule",
        "--schedule-policy",
        "--lora-drain-wait-threshold",
        "--async-scheduling",
    }
    assert {option for _, option in printed - seen} <= unset


def _said(engine: str, line: str, scenario: Scenario) -> list[str]:
    """Return the options of a command line, each of which, followed back to its key, has the scenario's value."""
    start = flag_tables()[engine].command
    assert line.startswith(f"{start} --enable-lora ")
    options = []
    for text in line.removeprefix(f"{start} ").split("--")[1:]:
        option, _, value = text.strip().partition(" ")
        flag = flag_tables()[engine].flags[f"--{option.removeprefix('no-')}"]
        options.append(flag.name)
        wanted = value_of(scenario, flag.keys[0]) if len(flag.keys) == 1 else None
        if isinstance(wanted, bool):
            assert (value, option.startswith("no-")) == ("", not wanted)
        elif flag.keys == ("fleet.speculation",):
            assert json.loads(value.strip("'"))["num_speculative_tokens"] == wanted.tokens
        elif wanted is not None and flag.keys[0] not in ("adapters.rank", "adapters.targets", "fleet.kv_offload.size"):
            assert value == str(wanted)
    return options


def test_vllm_is_always_given_what_the_run_assumed_of_memory_and_prefixes() -> None:
    """Without them vLLM would keep as many adapters in host memory as in slots, and find prefixes in its cache."""
    for name in bundled_scenarios():
        for engine in ("vllm-0.8", "vllm-0.32"):
            try:
                found = load_scenario(name, [f"fleet.engine={engine}"], check_points=False).scenario
            except InputError:
                continue
            for line in engine_flags(found, KV).values():
                host = value_of(found, "cache.host.slots") or found.cache.gpu.slots
                words = line.split()
                assert words[words.index("--max-cpu-loras") + 1] == str(host)
                assert words[words.index("--block-size") + 1] == str(found.fleet.block_size)
                assert "--gpu-memory-utilization" in words
                assert f"--{'' if found.fleet.prefix_caching else 'no-'}enable-prefix-caching" in words


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (["fleet.engine=vllm"], ["--gpu-memory-utilization 0.92"]),
        (["fleet.engine=vllm", "fleet.gpu_memory_utilization=0.8"], ["--gpu-memory-utilization 0.8"]),
        (["fleet.engine=vllm", "fleet.kv_tokens=40000"], ["--num-gpu-blocks-override 2500"]),
        (["fleet.engine=sglang"], [f"--max-total-tokens {KV}"]),
        (
            ["fleet.engine=sglang", "fleet.gpu_memory_utilization=0.8"],
            ["--mem-fraction-static 0.774", f"--max-total-tokens {KV}"],
        ),
        (["fleet.engine=sglang", "fleet.kv_tokens=40000"], ["--max-total-tokens 40000"]),
    ],
)
def test_a_command_line_gives_the_kv_cache_that_the_run_assumed(
    base: Path, settings: list[str], options: list[str]
) -> None:
    """SGLang's share of memory holds something else than loraplan's, so it is given tokens wherever they come from, and
    its own share where the scenario names one: unset, it may be too small for these."""
    (line,) = engine_flags(load_scenario("base.yaml", settings).scenario, KV).values()
    about = r"--(?:gpu-memory-utilization|num-gpu-blocks-override|max-total-tokens|mem-fraction-static) \S+"
    assert re.findall(about, line) == options


def test_memory_that_is_left_to_sglang_is_its_share_on_that_gpu(base: Path) -> None:
    memory = load_profile("h100-80gb/llama-3.1-8b/vllm-0.24.0")[0].memory
    share = sglang_share(memory, chunk=8192, sequences=256, gpus=1)
    assert to_mem_fraction_static(memory, share, gpus=1) == pytest.approx(0.828, abs=0.003)  # as sglang#29092 found it
    h100 = build_world(load_scenario("base.yaml", ["fleet.engine=sglang", "sweep=null"]).scenario).pools[0]
    assert h100.profile is not None
    own, held = h100.profile.memory, memory_use(h100)
    assert held is not None
    static = held.weights + held.adapters + held.kv  # nothing of what the engine takes besides
    assert static / (own.total_bytes - 551 * 2**20) == pytest.approx(0.83, abs=0.001)
    engine, given = ["fleet.engine=sglang", "sweep=null", "fleet.gpu=l40s"], "fleet.gpu_memory_utilization=0.8"
    small, large, own = (
        build_world(load_scenario("base.yaml", [*engine, each]).scenario).pools[0].kv_tokens or 0
        for each in ("fleet.max_num_batched_tokens=16384", "fleet.max_num_batched_tokens=2048", given)
    )
    per_token, mib = 131_072, 2**20
    assert large - small == pytest.approx((16384 - 2048) * (1.5 + 8 / 512) * mib / per_token, rel=0.03)
    assert own < large
    with pytest.raises(InputError, match="got SGLang's default, 0%"):
        build_world(load_scenario("base.yaml", [*engine, "fleet.max_num_batched_tokens=65536"]).scenario)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            ["fleet.engine=continuous"],
            "engine continuous is idealised, and no server follows its rules; choose fleet.engine vllm.",
        ),
        (
            ["fleet.engine=fixed", "fleet.service={law: fixed, value: 10 ms}"],
            "engine fixed is a queue with a given service time, not a server.",
        ),
        (["fleet.engine=s-lora", "cache.gpu.slots=null"], "loraplan writes none for engine s-lora."),
        (["fleet.engine=vllm", "fleet.block_size=7"], "vLLM has no KV blocks of 7 tokens."),
        (["fleet.engine=vllm-0.32", "cache.eviction=lru"], "no option of vLLM sets cache.eviction to lru."),
        (
            ["fleet.engine=vllm-0.8", "fleet.kv_check=whole-prompt"],
            "no option of vLLM sets fleet.kv_check to whole-prompt.",
        ),
        (
            ["fleet.engine=vllm-0.32", "fleet.batching=prefill-first"],
            "no option of vLLM sets fleet.batching to prefill-first.",
        ),
        (["fleet.engine=sglang", "cache.eviction=sieve"], "no option of SGLang sets cache.eviction to sieve."),
        (
            ["fleet.engine=sglang", "cache.gpu.base_model_slot=false"],
            "no option of SGLang sets cache.gpu.base_model_slot to false.",
        ),
        (
            ["fleet.engine=sglang", "cache.host={slots: 90, fill: load}"],
            "no option of SGLang sets cache.host.fill to load.",
        ),
        (
            ["fleet.engine=sglang", "storage.mode=overlap", "fleet.load_at=admission", "storage.loaders=2"],
            "no option of SGLang sets storage.loaders to 2.",
        ),
    ],
)
def test_rules_that_the_engine_does_not_have_leave_no_command_line(base: Path, settings: list[str], why: str) -> None:
    found = load_scenario("base.yaml", settings).scenario
    assert why_no_flags(found) == f"No command line is given: {why}"
    assert engine_flags(found, KV) == {}


def test_command_lines_word_for_word(base: Path) -> None:
    full = ["cache.host.slots=64", "fleet.max_model_len=4096", "fleet.gpu_memory_utilization=0.8", "adapters.rank=24"]
    vllm = "vllm serve MODEL --enable-lora --max-loras 8 --max-lora-rank"
    cold = ["fleet.kv_tokens=40000", "fleet.prefix_caching=false"]
    batch = "--max-num-seqs 1024 --max-num-batched-tokens 8192"
    assert engine_flags(load_scenario("base.yaml", ["fleet.engine=vllm-0.32", *full]).scenario, KV) == {
        "vLLM": f"{vllm} 32 --max-cpu-loras 64 {batch} --max-model-len 4096 --gpu-memory-utilization 0.8 "
        "--block-size 16 --enable-prefix-caching"
    }
    assert engine_flags(load_scenario("base.yaml", ["fleet.engine=vllm-0.8", *cold]).scenario, KV) == {
        "vLLM": f"{vllm} 16 --max-cpu-loras 8 {batch} --block-size 16 --num-gpu-blocks-override 2500 "
        "--no-enable-prefix-caching"
    }
    shared = load_scenario("base.yaml", ["fleet.engine=vllm", *full, "fleet.kv_offload={host_memory: 60 GiB}"]).scenario
    assert "no option of vLLM sets fleet.kv_offload.host_memory" in why_no_flags(shared)
    assert "--kv-offloading-size 50 " in f"{engine_flags(as_started(shared, 50 * 2**30), KV)['vLLM']} "
    larger = ["rollouts=[{strategy: new-name, at: 1 s, adapter: 0, rank: 48}]"]
    assert "--max-lora-rank 64 " in engine_flags(load_scenario("base.yaml", [*full, *larger]).scenario, KV)["vLLM"]
    drafts = "fleet.speculation={tokens: 3, acceptance: 70%, draft: 5%, method: "
    for method, config, written in (
        ("eagle3", '{"method":"eagle3","model":"DRAFT","num_speculative_tokens":3}', True),
        ("ngram", '{"method":"ngram","num_speculative_tokens":3}', False),  # vLLM schedules step by step by itself
    ):
        given = ["fleet.engine=vllm", "fleet.async_scheduling=false", drafts + method + "}"]
        (line,) = engine_flags(load_scenario("base.yaml", given).scenario, KV).values()
        words = shlex.split(line)
        assert words[words.index("--speculative-config") + 1] == config
        assert ("--no-async-scheduling" in words) == written
        assert (
            "--speculative-config"
            not in engine_flags(load_scenario("base.yaml", [*given, "fleet.speculation.tokens=0"]).scenario, KV)["vLLM"]
        )
    sglang = ["fleet.engine=sglang", "storage.mode=overlap", "fleet.load_at=admission", "fleet.batching=mixed"]
    assert engine_flags(load_scenario("base.yaml", [*sglang, *full, *cold]).scenario, KV) == {
        "SGLang": "python -m sglang.launch_server --model-path MODEL --enable-lora --max-loras-per-batch 8 "
        "--max-lora-rank 24 --lora-target-modules q_proj v_proj --max-loaded-loras 64 --lora-eviction-policy lru "
        "--max-running-requests 2048 --chunked-prefill-size 8192 --context-length 4096 --enable-lora-overlap-loading "
        "--enable-mixed-chunk --max-total-tokens 40000 --page-size 1 --disable-radix-cache"
    }
    assert engine_flags(load_scenario("base.yaml", ["fleet.engine=s-lora"]).scenario, KV) == {}


@pytest.mark.parametrize(
    ("named", "written"), [("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"), ("llama-3.1-8b", "MODEL")]
)
def test_a_command_line_names_the_repository_of_the_base_model(named: str, written: str) -> None:
    scenario = load_scenario("quickstart").scenario
    adapters = scenario.adapters.model_copy(update={"base_model": named})
    line = engine_flags(scenario.model_copy(update={"adapters": adapters, "cache": scenario.cache}), None)["vLLM"]
    assert line.startswith(f"vllm serve {written} --enable-lora")


TENANTS = [
    {"name": "chat", "adapters": 8, "priority": -1},
    {"name": "batch", "adapters": 8, "priority": 3, "bucket": {"rate": "900/s", "burst": 40_000}},
]


def scenario(**fleet: object) -> Scenario:
    return build(
        workload={"requests": 10, "arrivals": {"process": "poisson", "rate": "1/s"}},
        adapters={"count": 16, "base_model": "llama-3.1-8b"},
        cache={"gpu": {"slots": 8}},
        fleet={"gpu": "h100-80gb", "engine": "vllm", "prefix_caching": True, **fleet},
        tenants=TENANTS,
    )


def test_vllm_gets_its_policy_only_where_it_is_not_the_default() -> None:
    written = engine_flags(scenario(scheduling="priority", async_scheduling=True), None)["vLLM"]
    assert written.endswith("--scheduling-policy priority")
    assert "--scheduling-policy" not in engine_flags(scenario(), None)["vLLM"]
    assert "priorities of the tenants: each request must carry its own (priority: chat -1, batch 3)" in beyond_flags(
        scenario(scheduling="priority")
    )
    assert any("token buckets of batch" in part for part in beyond_flags(scenario()))
    routed = load_scenario("quickstart", ["fleet.replicas=2", "router.policy=affinity-residency"]).scenario
    assert beyond_flags(routed)[-1] == "2 replicas behind an affinity-residency router"


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
def test_a_command_line_with_a_policy_is_read(policy: str) -> None:
    found = read_command(f"vllm serve m --enable-lora --max-loras 4 --scheduling-policy {policy}")
    assert [setting.value for setting in found.settings if setting.key == "fleet.scheduling"] == [policy]
    assert not found.untranslated


@pytest.mark.parametrize("options", ["--max-loras=8", "--max-loras 8", "--enable-lora --port=8000", "--port=8000"])
def test_a_model_may_come_last(options: str) -> None:
    assert read_command(f"vllm serve {options} org/model").model == "org/model"


def test_a_policy_that_vllm_does_not_have_is_not_translated() -> None:
    found = read_command("vllm serve m --enable-lora --scheduling-policy shortest")
    assert [said for said, _ in found.untranslated] == ["--scheduling-policy shortest"]


def test_an_idealised_engine_has_no_command_line() -> None:
    assert "continuous is idealised" in why_no_flags(scenario(engine="continuous", scheduling="vtc"))


def test_vllm_is_told_to_check_first_chunks_alone() -> None:
    alone = scenario(kv_check="first-chunk")
    assert why_no_flags(alone) == ""
    command = engine_flags(alone, None)["vLLM"]
    assert "--no-scheduler-reserve-full-isl" in command
    assert {"fleet.kv_check": "first-chunk"}.items() <= {
        each.key: each.value for each in read_command(command).settings
    }.items()
    assert "full-isl" not in engine_flags(scenario(), None)["vLLM"]
    assert "full-isl" not in engine_flags(scenario(engine="vllm-0.12"), None)["vLLM"], "its rule, without the option"
    assert why_no_flags(scenario(engine="vllm-0.12", kv_check="whole-prompt")).endswith(
        "fleet.kv_check to whole-prompt."
    )


@pytest.mark.parametrize(
    ("engine", "ahead", "written"),
    [
        ("vllm", True, ""),
        ("vllm-0.14", False, "--no-async-scheduling"),
        ("vllm-0.12", False, ""),
        ("vllm-0.12", True, "--async-scheduling"),
    ],
)
def test_vllm_gets_its_way_of_scheduling_where_it_is_not_the_versions_default(
    engine: str, ahead: bool, written: str
) -> None:
    words = engine_flags(scenario(engine=engine, async_scheduling=ahead), None)["vLLM"].split()
    assert [word for word in words if "async" in word] == written.split()


@pytest.mark.parametrize(
    ("engine", "method", "ahead"),
    [
        ("vllm", "eagle3", True),
        ("vllm-0.23", "eagle3", True),
        ("vllm", "draft_model", True),
        ("vllm-0.28", "draft_model", True),
        ("vllm-0.27.1", "draft_model", False),
        ("vllm", "ngram", False),
    ],
)
def test_drafts_are_scheduled_ahead_where_this_version_does_so_by_itself(engine: str, method: str, ahead: bool) -> None:
    speculation = {"tokens": 3, "acceptance": 0.7, "draft": 0.1, "method": method}
    unset = scenario(engine=engine, speculation=speculation, async_scheduling=None)
    assert unset.fleet.async_scheduling == ahead
    assert "async" not in engine_flags(unset, None)["vLLM"]
    none = scenario(engine=engine, speculation={**speculation, "tokens": 0}, async_scheduling=None)
    assert none.fleet.async_scheduling
    assert "async" not in engine_flags(none, None)["vLLM"]


def test_vllm_gets_its_interval_of_prefills_from_0_33_on() -> None:
    written = engine_flags(scenario(engine="vllm-0.33", prefill_schedule_interval=3), None)["vLLM"]
    assert "--prefill-schedule-interval 3" in written
    assert "--prefill-schedule-interval" not in engine_flags(scenario(engine="vllm-0.33"), None)["vLLM"]
    refused = why_no_flags(scenario(engine="vllm-0.32", prefill_schedule_interval=3))
    assert refused.endswith("no option of vLLM sets fleet.prefill_schedule_interval to 3.")
