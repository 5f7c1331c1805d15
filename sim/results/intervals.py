"""What intervals are made from: Student's t and Wilson's shares, without numpy or scipy, which take long to import."""

from __future__ import annotations

import math
from functools import cache

NORMAL = 1.959964
"""97.5 % quantile of the normal distribution."""


def wilson(value: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share seen in so many independent requests; it holds near 0 and 1, too."""
    square = NORMAL**2 / count
    center = (value + square / 2) / (1 + square)
    half = math.sqrt(square * (value * (1 - value) + square / 4)) / (1 + square)
    # Rounding must not leave the value outside: at 0 and at 1 it is an end.
    return max(0.0, min(value, center - half)), min(1.0, max(value, center + half))


# fmt: off
# One value a line would be a page.
_QUANTILES = (
    12.706204736174694, 4.302652729749462, 3.1824463052837078, 2.7764451051977934, 2.5705818356363146,
    2.4469118511449786, 2.364624251592784, 2.306004135204166, 2.262157162798205, 2.228138851986274,
    2.200985160091639, 2.1788128296672284, 2.1603686564627913, 2.144786687917804, 2.131449545559776,
    2.1199052992212546, 2.1098155778333156, 2.1009220402410382, 2.0930240544083087, 2.085963447265864,
    2.0796138447276795, 2.0738730679040254, 2.0686576104190486, 2.0638985616280245, 2.0595385527532972,
    2.0555294386428735, 2.0518305164802846, 2.0484071417952454, 2.045229642132703, 2.0422724563012378,
    2.039513446396408, 2.0369333434601016, 2.0345152974493383, 2.0322445093177186, 2.030107928250343,
    2.0280940009804502, 2.0261924630291093, 2.0243941639119694, 2.022690920036761, 2.021075390306273,
)
# fmt: on
"""97.5 % quantiles for 1, 2, … degrees of freedom, to the last digit as ``scipy.special.stdtrit`` gives them."""


@cache
def student(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t: the half-width of a 95 % interval in standard errors."""
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))
