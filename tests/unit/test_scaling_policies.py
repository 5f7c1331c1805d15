"""Scaling policies against an oracle that is written from the documentation, on random series of metrics."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field

import pytest

from sim.policies.autoscaling import Reading, make_policy
from sim.spec.sections.control_plane import Autoscale


@dataclass
class Oracle:
    """What Kubernetes' documentation says, computed from the whole history at every decision, with no other state."""

    spec: Autoscale
    recommendations: list[tuple[float, int]] = field(default_factory=list)
    scales: list[tuple[float, int, int]] = field(default_factory=list)

    def recommended(self, current: int, values: list[float]) -> int:
        """desiredReplicas = ceil(currentReplicas * currentMetricValue / desiredMetricValue), with missing metrics.

        As in Kubernetes, all quantities are integers, in thousandths; only the ratio is a float.
        """
        spec = self.spec
        assert spec.target is not None, "an HPA has a target"
        target, total = round(1000 * spec.target), sum(math.floor(1000 * value) for value in values)
        if current < spec.min:
            return spec.min
        if current > spec.max:
            return spec.max
        ratio = total // len(values) / target
        missing = current - len(values)
        if missing:
            assumed = target if ratio < 1 else 0
            again = (total + missing * assumed) // current / target
            if (ratio > 1 and again < 1) or (ratio < 1 and again > 1):
                return current
            ratio = again
        if 1 - spec.tolerance <= ratio <= 1 + spec.tolerance:
            return current
        return math.ceil(current * ratio)

    def decide(self, now: float, current: int, values: list[float]) -> int:
        spec = self.spec
        if not self.recommendations:
            self.recommendations = [(now, current)]
        wanted = self.recommended(current, values)
        lately_up = [n for at, n in self.recommendations if now - at < spec.stabilization_up] + [wanted]
        lately_down = [n for at, n in self.recommendations if now - at < spec.stabilization_down] + [wanted]
        stable = current
        if min(lately_up) > stable:
            stable = min(lately_up)
        if max(lately_down) < stable:
            stable = max(lately_down)
        self.recommendations.append((now, wanted))
        stable = sorted((spec.min, stable, spec.max))[1]
        gained = sum(new - old for at, old, new in self.scales if now - at < spec.period and new > old)
        removed = sum(old - new for at, old, new in self.scales if now - at < spec.period and new < old)
        start = current - gained + removed
        result = stable
        if stable > current:
            limits = [math.ceil(start * (1 + spec.up_share))]
            if spec.up_replicas is not None:
                limits.append(start + spec.up_replicas)
            result = max(current, min(stable, max(limits)))
        elif stable < current:
            limits = [math.floor(start * (1 - spec.down_share))]
            if spec.down_replicas is not None:
                limits.append(start - spec.down_replicas)
            result = min(current, max(stable, min(limits)))
        if result != current:
            self.scales.append((now, current, result))
        return result


def random_spec(rng: random.Random, policy: str = "hpa", **given: object) -> Autoscale:
    """Return a controller with random windows, rates and bounds."""
    least = rng.randint(1, 4)
    return Autoscale.model_validate(
        {
            "policy": policy,
            "target": rng.choice([1, 3.5, 8, 20]),
            "min": least,
            "max": rng.randint(least, 12),
            "tolerance": rng.choice([0, 0.1, 0.25]),
            "stabilization_up": f"{rng.choice([0, 15, 45])} s",
            "stabilization_down": f"{rng.choice([0, 30, 300])} s",
            "up_replicas": rng.choice([None, 1, 4]),
            "up_share": rng.choice([0.5, 1, 3]),
            "down_replicas": rng.choice([None, 1, 2]),
            "down_share": rng.choice([0.1, 0.5, 1]),
            "period": f"{rng.choice([15, 40, 120])} s",
            **given,
        }
    )


@pytest.mark.parametrize("seed", range(60))
def test_hpa_decides_as_the_documentation_says(seed: int) -> None:
    rng = random.Random(seed)
    spec = random_spec(rng)
    policy, oracle = make_policy(spec, 60.0), Oracle(spec)
    assert spec.target is not None
    replicas, level = rng.randint(spec.min, spec.max), 0.0
    seen = set()
    for wake in range(200):
        now = 15.0 * wake
        if wake % 25 == 0:  # long enough for the windows, and near the target of some fleet within the bounds
            level = spec.target * spec.max * rng.uniform(0, 1.3)
        ready = rng.randint(max(1, replicas - 3), replicas)
        values = [max(0.0, level / ready * rng.uniform(0.5, 1.5)) for _ in range(ready)]
        wanted = oracle.decide(now, replicas, values)
        assert policy.desired(Reading(now, replicas, values)) == wanted, f"seed {seed}, wake {wake}"
        assert spec.min <= wanted <= spec.max
        seen.add(wanted)
        replicas = wanted
    assert len(seen) > 1 or spec.max - spec.min < 3 or spec.stabilization_down > 100, "the series moves the fleet"


def test_an_hpa_computes_as_kubernetes_does() -> None:
    """``calcPlainMetricReplicas``: a mean in whole thousandths, a ratio in float64, its ceil.

    So 29 requests on 7 replicas are 4.142 each, and 29 replicas are enough for a target of 1; but 7 requests on 25
    replicas make 0.28 * 25 = 7.000000000000001, and Kubernetes asks for 8.
    """
    spec = Autoscale.model_validate({"target": 1, "max": 4096, "up_replicas": 4096, "stabilization_down": "0 s"})

    def asked(replicas: int, requests: int, target: int) -> int:
        low, more = divmod(requests, replicas)
        values = [low + 1.0] * more + [float(low)] * (replicas - more)
        policy = make_policy(spec.model_copy(update={"target": target}), 60.0)
        return policy.desired(Reading(0.0, replicas, values))

    assert asked(7, 29, 1) == 29
    assert asked(25, 7, 1) == 8
    for replicas, requests, target in itertools.product(range(1, 33), range(160), (1, 2, 3, 7, 10)):
        mean = 1000 * requests // replicas
        needed = max(1, -(-requests // target))
        found = asked(replicas, requests, target)
        if 900 * target <= mean <= 1100 * target:
            assert found == replicas
        else:
            assert found == max(1, math.ceil(mean / (1000 * target) * replicas))
            exact = mean * replicas % (1000 * target) == 0
            assert needed <= found <= needed + exact, "one too many only where rounding meets a whole number"


@pytest.mark.parametrize("seed", range(30))
def test_keda_reads_a_total_and_stops_the_last_replica_after_its_cooldown(seed: int) -> None:
    rng = random.Random(seed)
    windows = {"stabilization_up": "0 s", "stabilization_down": "0 s", "up_replicas": 100, "down_share": 1}
    cooldown_s = rng.choice([0, 60])
    spec = random_spec(rng, "keda", min=0, cooldown=f"{cooldown_s} s", **windows)
    policy = make_policy(spec, 60.0)
    assert spec.target is not None
    replicas, active_s = 1, 0.0
    for wake in range(300):
        now = 15.0 * wake
        total = max(0.0, rng.choice([0, 0, 0, 1, spec.target, 3 * spec.target, 100 * spec.target]))
        if wake % 50 > 30:
            total = 0.0
        ready = rng.randint(0, replicas)
        values = [total, *[0.0] * (ready - 1)] if ready else []
        held = 0 if ready else round(total)
        total = (values[0] if ready else 0.0) + held
        active_s = now if total > 0 or not wake else active_s
        if replicas == 0:
            wanted = 1 if total > 0 else 0
        elif total == 0 and now - active_s >= cooldown_s:
            wanted = 0
        elif abs(total / (spec.target * replicas) - 1) <= spec.tolerance:
            wanted = replicas
        else:
            wanted = min(spec.max, max(1, math.ceil(total / spec.target)))
        assert policy.desired(Reading(now, replicas, values, held)) == wanted, f"seed {seed}, wake {wake}"
        replicas = wanted


def test_a_replica_that_starts_counts_as_idle_where_more_are_asked_for() -> None:
    policy = make_policy(Autoscale(target=10, max=8), 60.0)
    # Two ready replicas at twice the target, two that start: 40 / 4 is the target, so nothing changes.
    assert policy.desired(Reading(0.0, 4, [20.0, 20.0])) == 4


def test_a_replica_that_starts_counts_as_on_target_where_fewer_are_asked_for() -> None:
    policy = make_policy(Autoscale(target=10, max=8, stabilization_down=0.0), 60.0)
    # Mean 1 of the ready ones; with the other two on target 22 / 40, so 3 of 4.
    assert policy.desired(Reading(0.0, 4, [1.0, 1.0])) == 3


def test_a_fleet_without_metrics_stays_as_it_is() -> None:
    assert make_policy(Autoscale(target=10, max=8), 60.0).desired(Reading(0.0, 3, [])) == 3


def test_steps_take_the_farthest_threshold_and_then_pause() -> None:
    steps = [{"above": 10, "add": 1}, {"above": 30, "add": 3}, {"below": 4, "remove": 1}, {"below": 1, "remove": 2}]
    spec = Autoscale.model_validate({"policy": "step", "max": 9, "steps": steps, "cooldown": "60 s"})
    policy = make_policy(spec, 60.0)
    assert policy.desired(Reading(0.0, 2, [31.0, 31.0])) == 5
    assert policy.desired(Reading(45.0, 5, [31.0])) == 5, "cooldown"
    assert policy.desired(Reading(60.0, 5, [11.0])) == 6
    assert policy.desired(Reading(120.0, 6, [10.0])) == 6, "on the threshold"
    assert policy.desired(Reading(180.0, 6, [0.5])) == 4
    assert policy.desired(Reading(240.0, 4, [3.0])) == 3
    assert policy.desired(Reading(300.0, 1, [0.0])) == 1, "the minimum"


def test_a_schedule_begins_again() -> None:
    entries = [{"at": "8 h", "replicas": 6}, {"at": "20 h", "replicas": 2}]
    spec = Autoscale.model_validate({"policy": "schedule", "min": 0, "max": 6, "schedule": entries})
    policy = make_policy(spec, 60.0)
    hours = {0: 2, 7.99: 2, 8: 6, 19: 6, 20: 2, 31: 2, 32: 6}
    assert {hour: policy.desired(Reading(hour * 3600.0, 1, [1.0])) for hour in hours} == hours


def test_a_forecast_starts_replicas_for_the_end_of_the_cold_start() -> None:
    given = {"target": 10, "max": 50, "history": "60 s", "up_replicas": 50, "tolerance": 0}
    spec = Autoscale.model_validate({"policy": "predictive", **given})
    policy = make_policy(spec, lead_s=120.0)
    replicas, wanted = 1, []
    for wake in range(9):  # the total grows by 1 each 15 s
        replicas = policy.desired(Reading(15.0 * wake, replicas, [50.0 + wake]))
        wanted.append(replicas)
    # From the third reading on there is a line; 120 s ahead the total is 8 higher.
    assert wanted == [math.ceil((50 + wake + (8 if wake >= 2 else 0)) / 10 - 1e-9) for wake in range(9)]
