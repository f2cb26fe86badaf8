"""What may be said of a number of boots. Pure.

The boot is the unit of replication: cells are compared within a boot, as the logarithm of a ratio, and the boots give
its mean and an interval by Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
# Below so many boots an interval excludes 1 far too often, whatever it says of itself.
ENOUGH_BOOTS = 20


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of paired ratios with its interval; without one (a single pair) both ends are infinite."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1.0 <= self.high


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values; raises ValueError for others, or for none."""
    if not values or min(values) <= 0:
        raise ValueError("a geometric mean is of positive values")
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def paired_ratio(
    numerators: Mapping[int, float], denominators: Mapping[int, float], confidence: float = CONFIDENCE
) -> Ratio | None:
    """The ratio over the seeds that both have, in positive values; None when there are none."""
    logs = [
        math.log(numerators[seed] / denominators[seed])
        for seed in sorted(numerators.keys() & denominators.keys())
        if numerators[seed] > 0 and denominators[seed] > 0
    ]
    n = len(logs)
    if not n:
        return None
    mean = fmean(logs)
    if n == 1:
        return Ratio(math.exp(mean), 0.0, math.inf, 1)
    half = t_quantile((1 + confidence) / 2, n - 1) * stdev(logs) / math.sqrt(n)
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t with ``freedom`` degrees of freedom, for a probability from 0.5 to below 1."""
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"no such quantile: {probability} with {freedom} degrees of freedom")
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_probability(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_probability(t: float, freedom: int) -> float:
    """The probability that Student's t is at most ``t``, which is not negative: the closed form for whole degrees."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (step + 1) / (step + 2)
    inside = math.sin(angle) * total
    if odd:
        inside = (angle + inside) * 2 / math.pi
    return 0.5 + inside / 2


# Histograms of the guest: eight buckets for each power of two from 1 us.


def bucket_start(bucket: int) -> float:
    """The lower end of a bucket, in microseconds."""
    if bucket < 16:
        return bucket / 8
    shift = bucket // 8 - 1
    return float((bucket - 8 * shift) << shift) / 8


def pooled(histograms: Sequence[Mapping[int, int]]) -> dict[int, int]:
    """The sum of histograms."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def quantile(histogram: Mapping[int, int], fraction: float) -> float:
    """The lower end, in microseconds, of the bucket that holds this fraction; raises ValueError for an empty one."""
    wanted = fraction * sum(histogram.values())
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen > wanted or seen == sum(histogram.values()):
            return bucket_start(bucket)
    raise ValueError("an empty histogram has no quantiles")
