"""The paper's equations in float64 NumPy, one example and channel at a time.

Slow, and written unlike the implementation on purpose: raw moments E[x] and
E[x²] are mixed as the paper's Eq. 3 has them, and loops take the place of
broadcasting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np


def example_weighted(
    x: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    alpha: float | np.ndarray,
    eps: float,
) -> np.ndarray:
    """Example-weighted inference (Eq. 3) on (N, C, *)."""
    x = np.asarray(x, dtype=np.float64)
    examples, channels = x.shape[:2]
    alphas = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (channels,))
    out = np.empty_like(x)
    for n in range(examples):
        for c in range(channels):
            values = np.ravel(x[n, c])
            own_first, own_second = np.sum(values) / values.size, np.sum(values**2) / values.size
            moving_first = float(running_mean[c])
            moving_second = float(running_var[c]) + moving_first**2
            first = alphas[c] * own_first + (1 - alphas[c]) * moving_first
            second = alphas[c] * own_second + (1 - alphas[c]) * moving_second
            deviation = np.sqrt(second - first**2 + eps)
            gamma = 1.0 if weight is None else float(weight[c])
            beta = 0.0 if bias is None else float(bias[c])
            out[n, c] = gamma * (x[n, c] - first) / deviation + beta
    return out


def example_weighted_exactly(
    x: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    alpha: float | np.ndarray,
    eps: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 3 on (N, C, *) for inputs whose raw moments float64 cannot tell apart, and what each value is conditioned by.

    Sums are rounded once and raw moments are mixed as fractions, so no digit is
    lost however far the means are from 0 and from each other. The second array,
    (N, C), is (|μᵢ| + |m|) / sqrt(variance + ε).
    """
    x = np.asarray(x, dtype=np.float64)
    examples, channels = x.shape[:2]
    alphas = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (channels,))
    out, condition = np.empty_like(x), np.empty((examples, channels))
    for n in range(examples):
        for c in range(channels):
            values = np.ravel(x[n, c])
            near = math.fsum(values) / values.size
            own_first = Fraction(near) + Fraction(math.fsum(values - near) / values.size)
            own_second = Fraction(math.fsum((values - near) ** 2) / values.size)
            own_second += own_first**2 - (own_first - Fraction(near)) ** 2
            a, moving_first = Fraction(float(alphas[c])), Fraction(float(running_mean[c]))
            moving_second = Fraction(float(running_var[c])) + moving_first**2
            first = a * own_first + (1 - a) * moving_first
            second = a * own_second + (1 - a) * moving_second
            deviation = math.sqrt(second - first**2 + Fraction(eps))
            gamma = 1.0 if weight is None else float(weight[c])
            beta = 0.0 if bias is None else float(bias[c])
            whole = float(first)
            out[n, c] = gamma * ((x[n, c] - whole) - float(first - Fraction(whole))) / deviation + beta
            condition[n, c] = (abs(near) + abs(float(running_mean[c]))) / deviation
    return out, condition


def example_weighted_groups(
    x: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    alpha: float,
    eps: float,
    num_groups: int,
) -> np.ndarray:
    """Eq. 3 with channel groups: raw moments pooled over each group's channels, then mixed."""
    x = np.asarray(x, dtype=np.float64)
    out = np.empty_like(x)
    for n in range(len(x)):
        for channels in np.split(np.arange(x.shape[1]), num_groups):
            values = np.concatenate([np.ravel(x[n, c]) for c in channels])
            first = alpha * np.mean(values) + (1 - alpha) * np.mean(running_mean[channels])
            moving_second = np.mean([running_var[c] + running_mean[c] ** 2 for c in channels])
            second = alpha * np.mean(values**2) + (1 - alpha) * moving_second
            for c in channels:
                out[n, c] = weight[c] * (x[n, c] - first) / np.sqrt(second - first**2 + eps) + bias[c]
    return out


def example_weighted_positions(
    x: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    alpha: float,
    eps: float,
) -> np.ndarray:
    """Eq. 3 for LayerNorm over the channels of (N, C, H, W): a position's raw moments, and those of all channels."""
    x = np.asarray(x, dtype=np.float64)
    out = np.empty_like(x)
    channels = x.shape[1]
    moving_first = sum(float(m) for m in running_mean) / channels
    moving_second = (
        sum(float(v) + float(m) ** 2 for m, v in zip(running_mean, running_var, strict=True)) / channels
    )
    for n in range(x.shape[0]):
        for h in range(x.shape[2]):
            for w in range(x.shape[3]):
                values = x[n, :, h, w]
                first = alpha * np.mean(values) + (1 - alpha) * moving_first
                second = alpha * np.mean(values**2) + (1 - alpha) * moving_second
                deviation = np.sqrt(second - first**2 + eps)
                gamma = 1.0 if weight is None else np.asarray(weight, dtype=np.float64)
                beta = 0.0 if bias is None else np.asarray(bias, dtype=np.float64)
                out[n, :, h, w] = gamma * (values - first) / deviation + beta
    return out


def pooled_moments(batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance (C,) of all values of each channel of batches (N, C, *), in two passes."""
    means, variances = [], []
    for c in range(batches[0].shape[1]):
        values = np.concatenate([np.ravel(np.asarray(batch[:, c], dtype=np.float64)) for batch in batches])
        mean = np.sum(values) / values.size
        means.append(mean)
        variances.append(np.sum((values - mean) ** 2) / (values.size - 1))
    return np.array(means), np.array(variances)


def batch_group_norm(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    num_groups: int,
    examples_per_group: int,
    eps: float,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Training forward of ghost (one group a channel) and batch-group norm on (N, C, *).

    Returns the output and what the moving averages move towards: mean and
    unbiased variance, averaged over the groups of examples by their size. A
    group of one value takes the moving averages and adds nothing to them.
    """
    x = np.asarray(x, dtype=np.float64)
    examples, channels = x.shape[:2]
    gamma = np.ones(channels) if weight is None else np.asarray(weight, dtype=np.float64)
    beta = np.zeros(channels) if bias is None else np.asarray(bias, dtype=np.float64)
    out = np.empty_like(x)
    means, variances = np.zeros(channels), np.zeros(channels)
    counted = np.zeros(channels)
    for start in range(0, examples, examples_per_group):
        rows = list(range(start, min(start + examples_per_group, examples)))
        for group in np.split(np.arange(channels), num_groups):
            values = np.array([v for n in rows for c in group for v in np.ravel(x[n, c])])
            if values.size > 1:
                mean, variance = values.mean(), values.var()
                means[group] += len(rows) * mean
                variances[group] += len(rows) * values.var(ddof=1)
                counted[group] += len(rows)
            elif running_mean is not None:
                mean, variance = running_mean[group[0]], running_var[group[0]]
            else:
                mean, variance = values[0], 0.0
            for n in rows:
                for c in group:
                    out[n, c] = gamma[c] * (x[n, c] - mean) / np.sqrt(variance + eps) + beta[c]
    if not counted.all():
        return out, None, None
    return out, means / counted, variances / counted


def averages_of_raw_moments(
    batches: list[np.ndarray],
    momentum: float | None,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What m and m₂ − m² of each channel are after batches (N, C, *), as sections 3.2 and 3.4 keep m and m₂."""
    channels = batches[0].shape[1]
    first = np.zeros(channels) if running_mean is None else np.array(running_mean, dtype=np.float64)
    second = (
        np.ones(channels) if running_var is None else np.array(running_var, dtype=np.float64)
    ) + first**2
    for step, batch in enumerate(batches, 1):
        eta = 1 / step if momentum is None else momentum
        for c in range(channels):
            values = np.ravel(np.asarray(batch[:, c], dtype=np.float64))
            first[c] = (1 - eta) * first[c] + eta * np.sum(values) / values.size
            second[c] = (1 - eta) * second[c] + eta * np.sum(values**2) / values.size
    return first, second - first**2


def batch_group_norm_with_gradient(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    dy: np.ndarray,
    num_groups: int,
    size: int,
    eps: float,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Grouped normalisation of a batch that ``size`` divides, and its gradients for dy.

    For y, mean and unbiased variance averaged over the groups of examples, dx,
    dγ and dβ: the value, and the sum of magnitudes that it is made of, times
    1 + κ where digits of x − mean count; κ = |mean| / sqrt(variance + ε).
    """
    names = ("y", "mean", "variance", "dx", "dweight", "dbias")
    channels, groups = x.shape[1], len(x) // size
    values = [np.zeros_like(x) if name in ("y", "dx") else np.zeros(channels) for name in names]
    units = [np.zeros_like(v) for v in values]
    y, means, variances, dx, dweight, dbias = values
    y_unit, mean_unit, variance_unit, dx_unit, dweight_unit, dbias_unit = units
    across = (slice(None),) + (None,) * (x.ndim - 2)
    axes = (0, *range(2, x.ndim))
    for rows in np.split(np.arange(len(x)), groups):
        for group in np.split(np.arange(channels), num_groups):
            here = np.ix_(rows, group)
            gamma, beta, d = weight[group][across], bias[group][across], dy[here]
            mean, variance, count = x[here].mean(), x[here].var(), x[here].size
            rstd = 1 / np.sqrt(variance + eps)
            lost = 1 + abs(mean) * rstd
            xhat = (x[here] - mean) * rstd
            y[here] = gamma * xhat + beta
            y_unit[here] = np.abs(gamma) * (np.abs(xhat) + lost) + np.abs(beta)
            means[group] += mean / groups
            mean_unit[group] += (abs(mean) + np.sqrt(variance)) / groups
            unbiased = variance * count / (count - 1)
            variances[group] += unbiased / groups
            variance_unit[group] += unbiased * lost / groups
            dxhat = gamma * d
            dx[here] = rstd * (dxhat - dxhat.mean() - xhat * (dxhat * xhat).mean())
            sizes = np.abs(dxhat) + np.abs(dxhat).mean() + (np.abs(xhat) + 1) * np.abs(dxhat * xhat).mean()
            dx_unit[here] = rstd * lost * sizes
            dweight[group] += (d * xhat).sum(axes)
            dweight_unit[group] += lost * (np.abs(d) * (np.abs(xhat) + 1)).sum(axes)
            dbias[group] += d.sum(axes)
            dbias_unit[group] += np.abs(d).sum(axes)
    return dict(zip(names, zip(values, units, strict=True), strict=True))


def batch_renorm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    r_max: float,
    d_max: float,
    eps: float,
) -> np.ndarray:
    """Algorithm 1 of Ioffe 2017, a channel at a time."""
    x = np.asarray(x, dtype=np.float64)
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        sigma_batch, sigma = np.sqrt(x[:, c].var() + eps), np.sqrt(running_var[c] + eps)
        r = min(max(sigma_batch / sigma, 1 / r_max), r_max)
        d = min(max((x[:, c].mean() - running_mean[c]) / sigma, -d_max), d_max)
        out[:, c] = weight[c] * ((x[:, c] - x[:, c].mean()) / sigma_batch * r + d) + bias[c]
    return out


def batch_statistics(
    x: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    pseudo_count: float,
    num_groups: int | None = None,
) -> np.ndarray:
    """Schneider et al. 2020, Eq. 3, on (N, C, *); with groups both moments are those of a group's channels together."""
    x = np.asarray(x, dtype=np.float64)
    out = np.empty_like(x)
    examples, channels = x.shape[:2]
    trust = 1.0 if np.isinf(pseudo_count) else pseudo_count / (pseudo_count + examples)
    for group in np.split(np.arange(channels), num_groups or channels):
        values = np.concatenate([np.ravel(x[:, c]) for c in group])
        batch_mean = np.sum(values) / values.size
        batch_var = np.sum((values - batch_mean) ** 2) / values.size
        moving_mean = sum(float(running_mean[c]) for c in group) / len(group)
        moving_second = sum(float(running_var[c]) + float(running_mean[c]) ** 2 for c in group) / len(group)
        mean = trust * moving_mean + (1 - trust) * batch_mean
        variance = trust * (moving_second - moving_mean**2) + (1 - trust) * batch_var
        for c in group:
            gamma = 1.0 if weight is None else float(weight[c])
            beta = 0.0 if bias is None else float(bias[c])
            out[:, c] = gamma * (x[:, c] - mean) / np.sqrt(variance + eps) + beta
    return out


def derivative(f: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of f by central differences."""
    gradient = np.empty_like(at)
    for i in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (f(up) - f(down)) / (2 * step)
    return gradient


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """ECE by its definition, a bin at a time; bins are (a, b], the first one [0, b]."""
    total, n = 0.0, len(confidence)
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i in range(n) if (low < confidence[i] <= high) or (b == 0 and confidence[i] == 0)]
        if inside:
            accuracy = np.mean([float(correct[i]) for i in inside])
            total += len(inside) / n * abs(accuracy - np.mean([float(confidence[i]) for i in inside]))
    return total


def cross_entropy(logits: np.ndarray, target: int) -> float:
    """−log softmax(logits)[target] in nats."""
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits)
    return float(np.log(np.sum(np.exp(shifted))) - shifted[target])


def macro_recall(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes that there are of the share of their examples that is found."""
    return float(np.mean([np.mean(predicted[targets == c] == c) for c in sorted(set(targets.tolist()))]))


def macro_f1(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over all classes seen of the harmonic mean of precision and recall, 0 where nothing is right."""
    found = []
    for c in sorted({*targets.tolist(), *predicted.tolist()}):
        right = sum(1 for t, p in zip(targets, predicted, strict=True) if t == c == p)
        if right == 0:
            found.append(0.0)
            continue
        precision, recall = right / sum(predicted == c), right / sum(targets == c)
        found.append(2 / (1 / precision + 1 / recall))
    return float(np.mean(found))


def auroc(targets: np.ndarray, margin: np.ndarray) -> float:
    """The share of pairs of an example of class 1 and one of class 0 in which the first is higher."""
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in margin[targets == 1] for b in margin[targets == 0]
    ]
    return float(np.mean(pairs))


def average_precision(targets: np.ndarray, margin: np.ndarray) -> float:
    """Precision at each threshold, weighted by the recall that it adds."""
    value, recall_before = 0.0, 0.0
    for threshold in sorted(set(margin.tolist()), reverse=True):
        chosen = margin >= threshold
        recall = float((targets[chosen] == 1).sum() / (targets == 1).sum())
        value += (recall - recall_before) * float((targets[chosen] == 1).mean())
        recall_before = recall
    return value
