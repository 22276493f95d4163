"""Independent versions of what is tested: plain loops, to 50 digits where it matters."""

import mpmath
import numpy as np
from mpmath import mp, mpf

mp.dps = 50


def tilted(log_p, m, alpha):
    """The tilted distribution, one token at a time, as mpmath numbers; and the log of its normaliser."""
    weights = [mp.exp(mpf(float(lp)) + mpf(float(alpha)) * mpf(float(mz))) for lp, mz in zip(log_p, m, strict=True)]
    total = mp.fsum(weights)
    return [w / total for w in weights], mp.log(total)


def log_partition(log_p, m, alpha):
    return tilted(log_p, m, alpha)[1]


def mean(log_p, m, alpha):
    q, _ = tilted(log_p, m, alpha)
    return mp.fsum(qz * mpf(float(mz)) for qz, mz in zip(q, m, strict=True))


def variance(log_p, m, alpha):
    q, _ = tilted(log_p, m, alpha)
    mu = mean(log_p, m, alpha)
    return mp.fsum(qz * (mpf(float(mz)) - mu) ** 2 for qz, mz in zip(q, m, strict=True))


def concept_log_odds(log_p, m, alpha, members):
    q, _ = tilted(log_p, m, alpha)
    inside = mp.fsum(qz for qz, member in zip(q, members, strict=True) if member)
    outside = mp.fsum(qz for qz, member in zip(q, members, strict=True) if not member)
    return mp.log(inside / outside)


def conditional_mean(log_p, m, alpha, members):
    q, _ = tilted(log_p, m, alpha)
    chosen = [(qz, mpf(float(mz))) for qz, mz, member in zip(q, m, members, strict=True) if member]
    return mp.fsum(qz * mz for qz, mz in chosen) / mp.fsum(qz for qz, _ in chosen)


def peak(log_p, m, z):
    """The root of E_alpha[M] = M(z) by bisection; E_alpha[M] increases with alpha."""
    low, high = mpf(-1), mpf(1)
    while mean(log_p, m, low) > m[z]:
        low *= 2
    while mean(log_p, m, high) < m[z]:
        high *= 2
    for _ in range(75):
        middle = (low + high) / 2
        if mp.fsum(q * (mpf(float(x)) - mpf(float(m[z]))) for q, x in zip(tilted(log_p, m, middle)[0], m, strict=True)) < 0:
            low = middle
        else:
            high = middle
    return float((low + high) / 2)


def softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def entropy(p):
    """sum of -p log p to 50 digits, p normalised first."""
    total = mp.fsum(mpf(float(x)) for x in p)
    shares = [mpf(float(x)) / total for x in p if x > 0]
    return -mp.fsum(s * mp.log(s) for s in shares)


def divergence(log_p, logits):
    """KL(p || softmax(logits)) to 50 digits, both normalised first."""
    zero = np.zeros(len(log_p))
    p, _ = tilted(log_p, zero, 0)
    q, _ = tilted(logits, zero, 0)
    return mp.fsum(pz * mp.log(pz / qz) for pz, qz in zip(p, q, strict=True) if pz > 0)


def close(got, expected, rtol, atol=0.0):
    """Whether a float is within a tolerance of an mpmath number, compared to 50 digits."""
    return abs(mpmath.mpf(float(got)) - expected) <= rtol * abs(expected) + atol
