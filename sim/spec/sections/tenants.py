"""Objectives, and tenants: groups of requests that have an objective, a priority and a token bucket of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, PositiveInt, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from sim.spec.base import Errors, Strict, checks, located
from sim.spec.sections.traffic_laws import Step, mean_rate
from sim.spec.units import (
    SALE_PATTERN,
    Rate,
    RequestPrice,
    Seconds,
    Share,
    TokenPrice,
    format_rate,
    is_request_price,
    parse_rate,
)


class Slo(Strict):
    """The service-level objective; every term must hold. In names of terms, ``p50`` is the median and ``p95`` the 95 %
    quantile."""

    ttft_mean: Seconds | None = Field(default=None, gt=0)
    ttft_p50: Seconds | None = Field(default=None, gt=0)
    ttft_p90: Seconds | None = Field(default=None, gt=0)
    ttft_p95: Seconds | None = Field(default=None, gt=0)
    ttft_p99: Seconds | None = Field(default=None, gt=0)
    """Time to first token."""
    tpot_mean: Seconds | None = Field(default=None, gt=0)
    tpot_p90: Seconds | None = Field(default=None, gt=0)
    tpot_p95: Seconds | None = Field(default=None, gt=0)
    tpot_p99: Seconds | None = Field(default=None, gt=0)
    """Time per output token after the first."""
    itl_mean: Seconds | None = Field(default=None, gt=0)
    itl_p90: Seconds | None = Field(default=None, gt=0)
    itl_p95: Seconds | None = Field(default=None, gt=0)
    itl_p99: Seconds | None = Field(default=None, gt=0)
    """Gap between tokens."""
    e2e_mean: Seconds | None = Field(default=None, gt=0)
    e2e_p50: Seconds | None = Field(default=None, gt=0)
    e2e_p90: Seconds | None = Field(default=None, gt=0)
    e2e_p95: Seconds | None = Field(default=None, gt=0)
    e2e_p99: Seconds | None = Field(default=None, gt=0)
    """Time from arrival to last token."""
    queue_mean: Seconds | None = Field(default=None, gt=0)
    queue_p99: Seconds | None = Field(default=None, gt=0)
    """Time that a request waits before it is admitted."""
    miss_ratio: Share | None = None
    """Share of admitted requests that had to start a load."""

    def terms(self) -> dict[str, float]:
        """Return the given terms by metric name: ``{"ttft_p99_s": 1.0, "miss_ratio": 0.2}``."""
        given = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name if name == "miss_ratio" else f"{name}_s": value for name, value in given if value is not None}


class TokenBucket(Strict):
    """A token bucket in front of the fleet, as gateways limit tokens or requests per minute.

    A request takes what it counts for when it is sent on.
    """

    counts: Literal["tokens", "requests"] = "tokens"
    """What the bucket counts. ``tokens``: those of the prompt and the answer. ``requests``: each request as one."""
    rate: Rate = Field(gt=0)
    """What flows in per unit of time, such as ``5000/s`` or ``300000/min``."""
    burst: PositiveInt = Field(le=1_000_000_000)
    """What the bucket holds at most; it is full at the start. No request may need more."""
    full: Literal["queue", "refuse"] = "queue"
    """What happens to a request for which the bucket lacks tokens. ``queue``: it waits in front of the fleet.
    ``refuse``: it is refused, as by a gateway that answers 429."""


class TenantPrice(Strict):
    """What a tenant pays for its completed requests. ``0.40 USD/1M tokens`` is short for the same price for prompts and
    answers."""

    input: TokenPrice = 0.0
    """For a million prompt tokens, such as ``0.40 USD/1M tokens``."""
    output: TokenPrice = 0.0
    """For a million output tokens, such as ``0.40 USD/1M tokens``."""
    request: RequestPrice = 0.0
    """For a request, such as ``0.002 USD/request``."""

    @checks
    def _some(self) -> Errors:
        if not self.model_fields_set:
            yield located("input", "this price is empty", hint="give input and output, or request")


def _as_price(value: Any) -> Any:
    """Return the section that a text is short for; a section as it is."""
    if isinstance(value, (Mapping, Strict)):
        return value
    return {"request": value} if is_request_price(value) else {"input": value, "output": value}


class _OrText:
    """Adds a text to the JSON Schema of a tenant's price."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        text = {"type": "string", "pattern": SALE_PATTERN, "examples": ["0.40 USD/1M tokens", "0.002 USD/request"]}
        return {"anyOf": [text, handler(core_schema)]}


class Tenant(Strict):
    """Every request belongs to exactly one tenant: that of its adapter, or of the base model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")
    """Its name in tables and files."""
    adapters: PositiveInt | None = None
    """How many adapters it has: the first tenant has adapters 0, 1, …, and so on. All tenants together have
    ``adapters.count``."""
    match: tuple[str, ...] = ()
    """Where a file names the adapters, instead of ``adapters``: patterns of names, such as ``acme-*``. Every name must
    match one tenant."""
    base_model: bool = False
    """Whether the requests to the base model are this tenant's."""
    share: Share | None = Field(default=None, gt=0)
    """Share of the requests for adapters; ``workload.popularity`` applies within each tenant. Unset for all: it decides
    over all adapters. Not with a trace."""
    rate: Rate | None = None
    """Its requests per unit of time, such as ``5/s``, in place of ``share``: for all tenants or none.
    ``workload.arrivals.rate`` can then be left out."""
    steps: tuple[Step, ...] = Field(default=(), max_length=100_000)
    """A rate that cycles through steps, as of ``process: piecewise``; its mean stays the tenant's, if given."""
    cv: float | None = Field(default=None, ge=0.01, le=100)
    """Coefficient of variation of the gaps between its own arrivals."""
    slo: Slo = Slo()
    """The objective of its requests, besides the fleet's ``slo``."""
    priority: int = Field(default=0, ge=-1_000_000, le=1_000_000)
    """With ``fleet.scheduling: priority``: lower values go first, as in vLLM."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """With ``fleet.scheduling: vtc`` or ``lcf``: its share of the service, relative to other tenants with waiting
    requests."""
    price: Annotated[TenantPrice, BeforeValidator(_as_price), _OrText()] | None = None
    """What it pays, such as ``0.40 USD/1M tokens``, ``0.002 USD/request`` or ``{input: 0.20, output: 0.80}``. Results
    then have its revenue, and with ``fleet.price`` its margin."""
    bucket: TokenBucket | None = None
    """Limits the tokens of its requests; unset: no limit."""

    @model_validator(mode="before")
    @classmethod
    def _mean(cls, data: Any) -> Any:
        return _with_mean(data) if isinstance(data, dict) else data

    @property
    def arrivals_key(self) -> Literal["steps", "cv", ""]:
        """The key by which its requests arrive by a process of their own; empty: they don't."""
        return "steps" if self.steps else "cv" if self.cv is not None else ""

    @checks
    def _whole(self) -> Errors:
        if self.adapters is not None and self.match:
            yield located("match", "give either adapters or match", got=", ".join(self.match))
        if self.adapters is None and not self.match and not self.base_model:
            yield located("adapters", "this tenant has no requests", hint="give adapters, match or base_model: true")
        if self.adapters is None and (self.match or self.base_model):
            for key in ("share", "rate", "steps", "cv"):
                if key in self.model_fields_set:
                    yield located(key, "only a tenant with a number of adapters has this", hint=f"remove {key}")
        if self.steps and not any(step.level for step in self.steps):
            yield located("steps", "no level above zero")
        for key in self.slo.model_fields_set:
            if key.startswith("itl") and getattr(self.slo, key) is not None:
                yield located(
                    f"slo.{key}",
                    "gaps between tokens are measured over the fleet, not by tenant",
                    hint=f"give {key.replace('itl', 'tpot')}, or set the term in the fleet's slo",
                )
        if self.slo.miss_ratio is not None and self.adapters is None and not self.match and self.base_model:
            yield located("slo.miss_ratio", "requests to the base model can't miss", hint="remove it")


def shares_of(tenants: Sequence[Tenant]) -> dict[int, float]:
    """Return the share of the requests for adapters of each tenant that has one, by its place; {} without any.

    A tenant's ``rate`` is its share of the sum of all rates.
    """
    rates = {place: tenant.rate for place, tenant in enumerate(tenants) if tenant.rate is not None}
    total = sum(rates.values())
    return {place: rate / total for place, rate in rates.items()} or {
        place: tenant.share for place, tenant in enumerate(tenants) if tenant.share is not None
    }


def with_tenants_rate(data: Any) -> Any:
    """Return a scenario's plain data with the sum of the tenants' rates as that of the arrivals, if these have none.

    Data that is no valid scenario comes back as it is, or with any rate: checking it is another's work.
    """
    if not isinstance(data, dict) or not isinstance(data.get("tenants"), (list, tuple)):
        return data
    given = [own for each in data["tenants"] if isinstance(each, dict) and (own := _given_rate(each)) is not None]
    workload = data.get("workload")
    if not given or not isinstance(workload, dict):
        return data
    arrivals = workload.get("arrivals")
    if not isinstance(arrivals, dict) or arrivals.get("rate") is not None or arrivals.get("process") == "closed":
        return data
    rate = format_rate(sum(map(_rate, given)) or 1.0)
    return {**data, "workload": {**workload, "arrivals": {**arrivals, "rate": rate}}}


def _with_mean(tenant: dict[str, Any]) -> dict[str, Any]:
    """Return a tenant's plain data with the mean of its steps as its rate, if these have rates and it has no share.

    :raises PydanticCustomError: as ``mean_rate``.
    """
    mean = mean_rate(tenant.get("steps"))
    return {**tenant, "rate": mean} if mean and tenant.get("rate") is None and tenant.get("share") is None else tenant


def _given_rate(tenant: dict[str, Any]) -> object:
    try:
        return _with_mean(tenant).get("rate")
    except PydanticCustomError:
        return None


def _rate(value: object) -> float:
    """Return a rate; 0 for what is none."""
    try:
        return parse_rate(value)
    except PydanticCustomError:
        return 0.0
