"""Steps of a base model from kernel tables: NVIDIA's measured kernels, added up by ``aisimulate`` or, before it,
``aiconfigurator-core``.

What the tables can't answer is refused. The packages themselves interpolate and extrapolate silently, also to shapes of
attention for which a table has no row.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from calibrate.kernels.base_models import WEIGHTS, BaseModel
from calibrate.kernels.cards import Card, OtherMemory
from sim.errors import InputError, LoraplanError, install_hint
from sim.spec.profile_choice import ANCHOR_STEP, MOST_GPUS

if TYPE_CHECKING:
    import pandas as pd

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
"""Engines that kernels were measured with, by their name in the tables, and as they call themselves."""
_ENGINE_NAMES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm", "tensorrt-llm": "trtllm"}
EXPERTS_ALONE = ("mxfp4",)
"""Formats of a mixture's experts; its attention stays in 16 bits."""
_EXPERTS = {"bf16": "bfloat16", "fp8": "fp8", "fp8-block": "fp8_block", "nvfp4": "nvfp4", "mxfp4": "w4a16_mxfp4"}
"""Formats of experts' weights: the name in their table."""


PACKAGES = {"aisimulate": "aisimulate_core", "aiconfigurator-core": "aiconfigurator_core"}
"""Packages that have the tables, each with its module; the first that is installed is read. The second became a part of
the first after its version 0.12: the calls and the folders are the same, and the first has newer tables."""
_ALIGNED = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, *range(256, 4353, 256), 8192, 16384, 32768)
"""Sizes of matrix products in the tables that are multiples of 16."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a profile is built for.

    :ivar engine: a key of ``ENGINES``.
    :ivar weights: a key of ``WEIGHTS``.
    :ivar tensor_parallel: GPUs of one replica.
    """

    card: Card
    model: BaseModel
    engine: str = "vllm"
    weights: str = "bf16"
    tensor_parallel: int = 1

    @property
    def heads(self) -> int:
        """Attention heads of one GPU."""
        return self.model.shape.heads // self.tensor_parallel

    @property
    def kv_heads(self) -> int:
        """KV heads of one GPU: at least one, so that GPUs beyond the model's KV heads hold copies."""
        return max(self.model.shape.kv_heads // self.tensor_parallel, 1)


def engine_of(name: str) -> str:
    """Return the key of ``ENGINES`` for an engine as scenarios name it: ``vllm``, ``vllm-0.32``, ``sglang-0.5`` …

    :raises InputError: for one without kernel tables.
    """
    wanted = name.strip().lower()
    for known, engine in _ENGINE_NAMES.items():
        if wanted == known or wanted.startswith(f"{known}-"):
            return engine
    raise InputError(
        "there are no kernel tables for this engine", key="--engine", got=name, allowed=", ".join(_ENGINE_NAMES)
    )


def other_version(name: str, measured: str) -> str | None:
    """Return a note where a user names another version of an engine than kernels were measured with, or None.

    :param name: as given: ``vllm-0.12``; without a version it is none in particular.
    :param measured: the engine of the tables, with its version: ``vLLM 0.24.0``.
    """
    asked, there = (re.search(r"[-= ]v?(\d+(?:\.\d+)*)", each) for each in (name, measured))
    if asked is None or there is None:
        return None
    parts = asked[1].split(".")
    if there[1].split(".")[: len(parts)] == parts:
        return None
    return f"the kernel tables have no {name}: this profile is of {measured}, the version that they were measured with"


def check_parallel(model: BaseModel, tensor_parallel: int) -> None:
    """Check that a model can be split over so many GPUs.

    :raises InputError: where its heads can't.
    """
    shape = model.shape
    splits = [n for n in (1, 2, 4, 8, 16) if n <= MOST_GPUS and shape.fits(n)]
    if tensor_parallel not in splits:
        raise InputError(
            f"{model.name} can't be split over so many GPUs: it has {shape.heads} attention heads and "
            f"{shape.kv_heads} KV heads",
            key="--tp",
            got=tensor_parallel,
            allowed=", ".join(map(str, splits)),
        )


def check_weights(model: BaseModel, weights: str) -> None:
    """Check that weights are in a format that the model's files may have.

    :raises InputError: for another one; its costs and its memory would be those of another checkpoint.
    """
    if model.formats and weights not in model.formats:
        raise InputError(
            f"the config.json of {model.name} is that of a quantised checkpoint (quantization_config)",
            key="--weights",
            got=weights,
            allowed=", ".join(model.formats),
            hint="or give the config.json of the checkpoint that isn't quantised",
        )


class NoSuchShape(InputError):
    """The tables of a card have no attention of a model's shape."""


class KernelTables:
    """The seconds of one replica's kernels in a step; the engine's own overhead is not among them.

    :ivar version: of the engine that matrix products were measured with.
    :ivar attention: of the engine that attention was measured with: no newer one.
    :ivar package: name and version of the package that has the tables.
    """

    def __init__(self, deployment: Deployment) -> None:
        """Compile a model for the tables.

        :raises InputError: without the extra, or where the tables don't cover this.
        """
        check_parallel(deployment.model, deployment.tensor_parallel)
        check_weights(deployment.model, deployment.weights)
        self._core, self.package = _package()
        system, engine = deployment.card.system, deployment.engine
        self._asked = asked_version(system, engine)
        self.version, self.attention = (
            measured_versions(system, engine, folder, self._asked)[0] for folder in ("gemm", "attention")
        )
        self.deployment = deployment
        with quiet():
            self._check_coverage()
            config = deployment.model.config()
            self._handle = self._compile(config)
            # aisimulate has the norms of queries and keys twice in a step with prompts, and in decode steps, where
            # measured servers show none: they are in kernels of the layer. Llama's layers are Qwen3's without them.
            plain = [name.replace("Qwen3", "Llama") for name in config["architectures"]]
            self._decoding = self._compile({**config, "architectures": plain})
            self._memory: OtherMemory | None = None
            if (measured := deployment.card.kernels_of) is not None:
                ratio = measured.bandwidth_bytes_per_s / deployment.card.bandwidth_bytes_per_s
                self._memory = OtherMemory(self._handle, ratio)
        self._correction_ms = lru_cache(maxsize=None)(self._uncached_correction_ms)

    def step_s(self, decoding: int, context: int, prompts: int = 0, prompt_tokens: int = 0, before: int = 0) -> float:
        """Return the seconds of one step's kernels.

        :param decoding: sequences that decode; each attends to ``context`` KV tokens and its new one.
        :param prompts: prompts of which the step prefills ``prompt_tokens`` tokens each, after ``before``
            others.
        """
        try:
            with quiet():
                return self._step_ms(decoding, context, prompts, prompt_tokens, before) / 1000
        except (ValueError, RuntimeError, KeyError) as error:
            raise InputError(
                "the kernel tables have no answer for a step of this model",
                key="--model",
                got=self.deployment.model.name,
                hint=str(error).splitlines()[0],
            ) from None

    def _step_ms(self, decoding: int, context: int, prompts: int, prompt_tokens: int, before: int) -> float:
        tokens = decoding + prompts * prompt_tokens
        around = self._correction_ms(tokens)
        if self._memory is not None:
            around += self._memory.extra_ms(tokens, decoding, context)
        if not prompts:
            return float(self._decoding.decode_step_latency(decoding, context, 2)) + around
        chunk, whole = prompts * prompt_tokens, prompt_tokens + before
        # The package averages the attention of a prompt over its chunks; this undoes it. Only one prompt is in chunks.
        _, shared, attention, _ = self._handle.mixed_step_breakdown(chunk, decoding, whole, 2, before)
        total = shared + around + attention * -(-whole // chunk)
        if decoding:
            total += self._decoding.mixed_step_breakdown(1, decoding, context, 2)[3]
        return float(total)

    def _uncached_correction_ms(self, tokens: int) -> float:
        """Return what to add to the sums of a step, so that products of sizes that are not aligned don't count.

        With quantised weights, products of 257, 513 or 769 tokens take up to twice as long in the tables as those of
        512, 768 or 1,024. Since larger aligned ones are faster, this is no matter of tiles: a slower kernel was
        measured, which needs no alignment. Engines can pad, so the time between aligned sizes is interpolated.
        """
        if self.deployment.weights == "bf16" or tokens <= _ALIGNED[0]:
            return 0.0
        low = max(size for size in _ALIGNED if size <= tokens)
        high = min((size for size in _ALIGNED if size >= tokens), default=tokens)
        share = (tokens - low) / (high - low) if high > low else 0.0
        aligned = self._shared_ms(low) + share * (self._shared_ms(high) - self._shared_ms(low))
        return aligned - self._shared_ms(tokens)

    def _shared_ms(self, tokens: int) -> float:
        return float(self._handle.mixed_step_breakdown(tokens, 0, tokens, 2)[1])

    def _compile(self, config: Mapping[str, Any]) -> Any:
        handle = import_module(f"{self._core}.sdk.engine").EngineHandle
        deployment = self.deployment
        with TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            try:
                return handle.compile(
                    folder,
                    deployment.card.system,
                    deployment.engine,
                    backend_version=self._asked,
                    tp_size=deployment.tensor_parallel,
                    gemm_quant_mode=WEIGHTS[deployment.weights],
                    **self._experts(),
                    kvcache_quant_mode="bfloat16",
                    fmha_quant_mode="bfloat16",
                )
            except (AssertionError, KeyError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise InputError(
                    "the kernel tables can't be used for this model",
                    key="--model",
                    got=deployment.model.name,
                    hint=reason,
                ) from None

    def _experts(self) -> dict[str, Any]:
        deployment = self.deployment
        if not deployment.model.shape.experts:
            return {}
        split = {"moe_tp_size": deployment.tensor_parallel, "moe_ep_size": 1}
        return {"moe_quant_mode": _EXPERTS[deployment.weights], **split}

    def _check_experts(self) -> None:
        deployment = self.deployment
        shape = deployment.model.shape
        if not shape.experts:
            if deployment.weights in EXPERTS_ALONE:
                raise InputError(
                    "a format of experts, and this model has none",
                    key="--weights",
                    got=deployment.weights,
                    allowed=", ".join(name for name in WEIGHTS if name not in EXPERTS_ALONE),
                )
            return
        if deployment.card.kernels_of is not None:
            raise InputError(
                "how experts go with the memory's bandwidth is not known",
                key="--gpu",
                got=deployment.card.name,
                hint=f"a card with tables of its own, such as {deployment.card.kernels_of.name}",
            )
        table = self._table("moe")
        same = (
            (table["hidden_size"] == shape.hidden)
            & (table["inter_size"] == shape.intermediate)
            & (table["topk"] == shape.active_experts)
            & (table["num_experts"] == shape.experts)
            & (table["moe_tp_size"] == deployment.tensor_parallel)
        )
        known = table.loc[same, "moe_dtype"].unique().tolist()
        if _EXPERTS.get(deployment.weights) not in known:
            allowed = [name for name, each in _EXPERTS.items() if each in known]
            raise InputError(
                f"{self._tables} have no experts of this model with such weights over so many GPUs",
                key="--weights",
                got=f"{deployment.weights}, --tp {deployment.tensor_parallel}",
                allowed=", ".join(allowed) or None,
            )

    def _check_coverage(self) -> None:
        deployment = self.deployment
        self._check_experts()
        formats = self._table("gemm")["gemm_dtype"].unique()
        if WEIGHTS[deployment.weights] not in formats:
            offered = self._offered(formats.tolist())
            hint = None if offered == ["bf16"] else "formats that take longer than 16 bits in these tables are refused"
            raise InputError(
                f"{self._tables} have no matrix products with such weights",
                key="--weights",
                got=deployment.weights,
                allowed=", ".join(offered) or None,
                hint=hint if offered else ANCHOR_STEP,
            )
        attention = self._table("generation_attention")
        shape = deployment.model.shape
        attention = attention[attention["head_dim"] == shape.head_dim]
        if attention.empty:
            raise self._gap(f"attention heads of {shape.head_dim} numbers")
        known = sorted(attention["num_key_value_heads"].unique().tolist())
        heads = attention.loc[attention["num_key_value_heads"] == deployment.kv_heads, "num_heads"]
        if heads.empty or not heads.min() <= deployment.heads <= heads.max():
            raise self._gap(
                f"{deployment.heads} attention heads over {deployment.kv_heads} KV heads on a GPU",
                f"KV heads on a GPU: {', '.join(map(str, known))}",
            )

    def _offered(self, formats: Sequence[str]) -> list[str]:
        model = self.deployment.model
        fitting = [name for name in model.formats or WEIGHTS if WEIGHTS[name] in formats]
        return [name for name in fitting if (name in _EXPERTS if model.shape.experts else name not in EXPERTS_ALONE)]

    def _table(self, name: str) -> pd.DataFrame:
        return table_of(self.deployment.card.system, self.deployment.engine, self._asked, name)

    @property
    def _tables(self) -> str:
        card = self.deployment.card.kernels_of or self.deployment.card
        engine = ENGINES[self.deployment.engine]
        return f"the kernel tables of {card.label} under {engine} {self.version}"

    def _gap(self, what: str, allowed: str | None = None) -> NoSuchShape:
        deployment = self.deployment
        return NoSuchShape(
            f"{self._tables} have no {what}; sums from other shapes were off by half and more",
            key="--model",
            got=f"{deployment.model.name}, --tp {deployment.tensor_parallel}",
            allowed=allowed,
            hint="another --tp may fit, or measure it: loraplan calibrate steps",
        )


def systems_folder() -> Path:
    """Return the package's folder of tables.

    :raises InputError: without the extra.
    """
    module = import_module(_package()[0])
    assert module.__file__ is not None, "a package with files"
    return Path(module.__file__).parent / "systems"


def asked_version(system: str, engine: str) -> str:
    """Return the version of an engine for which to query the tables of a card: the package fills gaps with older rows.

    It is the package's ``next`` where matrix products of this card were measured since ``current``, else that.

    :raises InputError: where there are none.
    """
    current, newest = _slots(system, engine)
    return newest if measured_versions(system, engine, "gemm", newest)[0] != current else current


@lru_cache(maxsize=16)
def _slots(system: str, engine: str) -> tuple[str, str]:
    """Return the package's current version and its newest."""
    resolve = import_module(f"{_package()[0]}.sdk.perf_database").resolve_query_version
    with quiet():
        try:
            current = str(resolve(system, engine, "current"))
        except (KeyError, RuntimeError, ValueError):
            raise InputError(
                "this card has no kernel tables for this engine", key="--engine", got=engine, allowed=", ".join(ENGINES)
            ) from None
        try:
            return current, str(resolve(system, engine, "next"))
        except ValueError:
            return current, current


def measured_versions(system: str, engine: str, folder: str, asked: str) -> list[str]:
    """Return the versions whose tables answer for the one asked for, newest first and ``current`` last.

    :param folder: ``gemm``, ``attention`` or ``moe``.
    """
    least = _order(_slots(system, engine)[0])
    there = [path.name for path in (systems_folder() / "data" / system / folder / engine).glob("[0-9]*")]
    return sorted((each for each in there if least <= _order(each) <= _order(asked)), key=_order, reverse=True)


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


_COLUMNS = {
    "gemm": ["gemm_dtype"],
    "moe": ["moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"],
}


@lru_cache(maxsize=8)
def table_of(system: str, engine: str, asked: str, name: str) -> pd.DataFrame:
    """Return the columns of a table that say what was measured, of all versions that answer for the one asked for."""
    import pandas as pd

    folder = "attention" if "attention" in name else name
    columns = _COLUMNS.get(name, ["head_dim", "num_heads", "num_key_value_heads"])
    data = systems_folder() / "data" / system / folder / engine
    paths = [data / each / f"{name}_perf.parquet" for each in measured_versions(system, engine, folder, asked)]
    found = [pd.read_parquet(path, columns=columns) for path in paths if path.exists()]
    if not found:
        raise LoraplanError(f"the package of kernel tables has no {name}_perf.parquet of {asked} in {data}")
    return pd.concat(found)


@lru_cache(maxsize=1)
def _package() -> tuple[str, str]:
    """Return the module that reads the tables, and name and version of its package.

    :raises InputError: without the extra.
    """
    from importlib.metadata import PackageNotFoundError, version

    for package, module in PACKAGES.items():
        try:
            import_module(module)
            return module, f"{package} {version(package)}"
        except (ImportError, PackageNotFoundError):
            continue
    raise InputError("profiles are built from kernel tables, which are not installed", hint=install_hint("kernels"))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence logging. Nested calls are free; the outermost clears the cache of every logger."""
    before = logging.root.manager.disable
    if before >= logging.CRITICAL:
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
