"""Token counts: histograms, and prompts and answers that depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter

from sim.spec.sections.laws import FixedTokens, TokenLaw
from sim.spec.sections.workload import Tokens
from sim.traffic.lengths import LengthPairs, TokenLengths

LAWS = [
    {"law": "fixed", "value": 7},
    {"law": "uniform", "low": 3, "high": 90},
    {"law": "geometric", "mean": 40},
    {"law": "geometric", "mean": 1},
    {"law": "lognormal", "mean": 200, "p99": 1500, "max": 900},
    {"law": "histogram", "low": 4, "high": 1024, "shares": [5, 0, 1, 2]},
]
COUNT = 40_000


def law(data: dict[str, object]) -> TokenLaw:
    return TypeAdapter(TokenLaw).validate_python(data)  # type: ignore[no-any-return]


@pytest.mark.parametrize("data", LAWS, ids=lambda data: str(data["law"]))
def test_a_law_is_the_same_whether_lengths_depend_on_each_other_or_not(data: dict[str, object]) -> None:
    lengths = TokenLengths(law(data))
    alone = lengths.draw(np.random.default_rng(1), COUNT)
    _, dependent = LengthPairs(lengths, lengths, -0.6).draw((np.random.default_rng(2), np.random.default_rng(3)), COUNT)
    assert dependent.min() >= 1
    for share in (0.02, 0.2, 0.5, 0.8, 0.98):
        # 4.5 standard errors of a sample quantile, as a range of shares: both are samples.
        slack = 4.5 * np.sqrt(2 * share * (1 - share) / COUNT)
        low, high = np.quantile(alone, (max(share - slack, 0), min(share + slack, 1)))
        assert low - 1 <= np.quantile(dependent, share) <= high + 1


def test_the_correlation_is_that_of_normal_scores() -> None:
    wide = TokenLengths(law({"law": "uniform", "low": 1, "high": 1_000_000}))
    prompt, output = LengthPairs(wide, wide, -0.35).draw((np.random.default_rng(1), np.random.default_rng(2)), COUNT)
    # Uniform marginals of a Gaussian copula correlate by 6/pi asin(rho/2); a sample's standard error is 1/sqrt(n).
    expected = 6 / np.pi * np.arcsin(-0.35 / 2)
    assert np.corrcoef(prompt, output)[0, 1] == pytest.approx(expected, abs=4 / np.sqrt(COUNT))


def test_a_histogram_may_be_stretched_to_a_mean() -> None:
    data = {"law": "histogram", "low": 4, "high": 1024, "shares": [5, 0, 1, 2], "mean": 300}
    drawn = TokenLengths(law(data)).draw(np.random.default_rng(1), COUNT)
    assert drawn.mean() == pytest.approx(300, abs=4 * drawn.std() / np.sqrt(COUNT))


def test_a_bare_number_is_a_fixed_length() -> None:
    tokens = Tokens.model_validate({"prompt": 500, "output": {"law": "fixed", "value": 20}})
    assert tokens.prompt == FixedTokens(law="fixed", value=500)
    assert tokens == Tokens.model_validate(tokens.model_dump())
    for bad in (0, -1, 1.5, True, "500", 10**8):
        with pytest.raises(ValueError, match="prompt"):
            Tokens.model_validate({"prompt": bad})
