"""Steps of a base model from kernel tables: NVIDIA's measured kernels, added up by ``aiconfigurator-core``.

What the tables can't answer is refused. The package itself interpolates and extrapolates silently, also to shapes of
attention for which a table has no row.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from calibrate.kernels.base_models import BaseModel
from calibrate.kernels.cards import Card
from calibrate.kernels.other_memory import OtherMemory
from calibrate.kernels.weight_formats import WEIGHTS
from sim.errors import InputError, LoraplanError, install_hint
from sim.spec.profile_choice import MOST_GPUS

if TYPE_CHECKING:
    import pandas as pd

ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
"""Engines that kernels were measured with, by their name in the tables, and as they call themselves."""
_ENGINE_NAMES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm", "tensorrt-llm": "trtllm"}
EXPERTS_ALONE = ("mxfp4",)
"""Formats of a mixture's experts; its attention stays in 16 bits."""
_EXPERTS = {"bf16": "bfloat16", "fp8": "fp8", "fp8-block": "fp8_block", "nvfp4": "nvfp4", "mxfp4": "w4a16_mxfp4"}
"""Formats of experts' weights: the name in their table."""


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


class KernelTables:
    """The seconds of one replica's kernels in a step; the engine's own overhead is not among them.

    :ivar version: of the engine that kernels were measured with.
    :ivar package: name and version of the package that has the tables.
    """

    def __init__(self, deployment: Deployment) -> None:
        """Compile a model for the tables.

        :raises InputError: without the extra, or where the tables don't cover this.
        """
        check_parallel(deployment.model, deployment.tensor_parallel)
        check_weights(deployment.model, deployment.weights)
        package = _package()
        self.package = f"aiconfigurator-core {package}"
        self.version = engine_version(deployment.card.system, deployment.engine)
        self.deployment = deployment
        with _quiet():
            self._check_coverage()
            self._handle = self._compile()
            self._memory = self._other_memory()
        self._aligned_correction_ms = lru_cache(maxsize=None)(self._uncached_correction_ms)

    def step_s(self, decoding: int, context: int, prompts: int = 0, prompt_tokens: int = 0, before: int = 0) -> float:
        """Return the seconds of one step's kernels.

        :param decoding: sequences that decode; each attends to ``context`` KV tokens and its new one.
        :param prompts: prompts of which the step prefills ``prompt_tokens`` tokens each, after ``before``
            others.
        """
        try:
            with _quiet():
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
        around = self._aligned_ms(tokens)
        if self._memory is not None:
            around += self._memory.extra_ms(tokens, decoding, context)
        if not prompts:
            return float(self._handle.decode_step_latency(decoding, context, 2)) + around
        chunk, whole = prompts * prompt_tokens, prompt_tokens + before
        # The package averages the attention of a prompt over its chunks; this undoes it. Only one prompt is in chunks.
        _, shared, attention, _ = self._handle.mixed_step_breakdown(chunk, decoding, whole, 2, before)
        total = shared + around + attention * -(-whole // chunk)
        if decoding:
            total += self._handle.mixed_step_breakdown(1, decoding, context, 2)[3]
        return float(total)

    def _aligned_ms(self, tokens: int) -> float:
        """Return what to add to the sums of a step, so that products of sizes that are not aligned don't count.

        With quantised weights, products of 257, 513 or 769 tokens take up to twice as long in the tables as those of
        512, 768 or 1,024. Since larger aligned ones are faster, this is no matter of tiles: a slower kernel was
        measured, which needs no alignment. Engines can pad, so the time between aligned sizes is interpolated.
        """
        if self.deployment.weights == "bf16" or tokens <= _ALIGNED[0]:
            return 0.0
        return self._aligned_correction_ms(tokens)

    def _uncached_correction_ms(self, tokens: int) -> float:
        low = max(size for size in _ALIGNED if size <= tokens)
        high = min((size for size in _ALIGNED if size >= tokens), default=tokens)
        share = (tokens - low) / (high - low) if high > low else 0.0
        aligned = self._shared_ms(low) + share * (self._shared_ms(high) - self._shared_ms(low))
        return aligned - self._shared_ms(tokens)

    def _shared_ms(self, tokens: int) -> float:
        return float(self._handle.mixed_step_breakdown(tokens, 0, tokens, 2)[1])

    def _other_memory(self) -> OtherMemory | None:
        measured = self.deployment.card.kernels_of
        if measured is None:
            return None
        return OtherMemory(self._handle, measured.bandwidth_bytes_per_s / self.deployment.card.bandwidth_bytes_per_s)

    def _compile(self) -> Any:
        from aiconfigurator_core.sdk.engine import EngineHandle

        deployment = self.deployment
        with TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(deployment.model.config()))
            try:
                return EngineHandle.compile(
                    folder,
                    deployment.card.system,
                    deployment.engine,
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
        """Refuse what the table of experts has no row for."""
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
        table = table_of(deployment.card.system, deployment.engine, self.version, "moe")
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
        formats = table_of(deployment.card.system, deployment.engine, self.version, "gemm")["gemm_dtype"].unique()
        if WEIGHTS[deployment.weights] not in formats:
            offered = self._offered(formats.tolist())
            hint = None if offered == ["bf16"] else "formats that take longer than 16 bits in these tables are refused"
            raise InputError(
                f"{self._tables} have no matrix products with such weights",
                key="--weights",
                got=deployment.weights,
                allowed=", ".join(offered) or None,
                hint=hint if offered else "give another --gpu, or the config.json of a checkpoint in another format",
            )
        attention = table_of(deployment.card.system, deployment.engine, self.version, "generation_attention")
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
        """Return the formats of weights that this model can have, of those that matrix products were measured with."""
        model = self.deployment.model
        fitting = [name for name in model.formats or WEIGHTS if WEIGHTS[name] in formats]
        return [name for name in fitting if (name in _EXPERTS if model.shape.experts else name not in EXPERTS_ALONE)]

    @property
    def _tables(self) -> str:
        card = self.deployment.card.kernels_of or self.deployment.card
        engine = ENGINES[self.deployment.engine]
        return f"the kernel tables of {card.label} under {engine} {self.version}"

    def _gap(self, what: str, allowed: str | None = None) -> InputError:
        deployment = self.deployment
        return InputError(
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
    _package()
    import aiconfigurator_core

    return Path(aiconfigurator_core.__file__).parent / "systems"


def engine_version(system: str, engine: str) -> str:
    """Return the version of the engine that the tables of a card were measured with.

    :raises InputError: where there are none.
    """
    _package()
    from aiconfigurator_core.sdk import perf_database

    with _quiet():
        try:
            return str(perf_database.resolve_query_version(system, engine, "current"))
        except (KeyError, RuntimeError, ValueError):
            raise InputError(
                "this card has no kernel tables for this engine", key="--engine", got=engine, allowed=", ".join(ENGINES)
            ) from None


_COLUMNS = {
    "gemm": ["gemm_dtype"],
    "moe": ["moe_dtype", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size"],
}


@lru_cache(maxsize=8)
def table_of(system: str, engine: str, version: str, name: str) -> pd.DataFrame:
    """Return the columns of a table that say what was measured."""
    import pandas as pd

    folder = "attention" if "attention" in name else name
    columns = _COLUMNS.get(name, ["head_dim", "num_heads", "num_key_value_heads"])
    path = systems_folder() / "data" / system / folder / engine / version / f"{name}_perf.parquet"
    try:
        return pd.read_parquet(path, columns=columns)
    except OSError:
        raise LoraplanError(f"the package of kernel tables has no {path}") from None


@lru_cache(maxsize=1)
def _package() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        import aiconfigurator_core  # noqa: F401

        return version("aiconfigurator-core")
    except (ImportError, PackageNotFoundError):
        raise InputError(
            "profiles are built from kernel tables, which are not installed", hint=install_hint("kernels")
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package, which logs every table that it doesn't have."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
