"""Matrices known up to the Frobenius norm of their error: rigorous products at the price of plain ones.

|fl(sum x_i y_i) - sum x_i y_i| <= n 2^-52 sum |x_i y_i| + n 2^-1074 (see `balls`), so by Cauchy-Schwarz the error of a
product XY, n the inner dimension, has a Frobenius norm of at most n 2^-52 |X| |Y|, up to underflow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .balls import UNIT, Floats
from .format import require

LEAST = 2.0**-500
MAX_WORK = 2**40


def up(x: npt.ArrayLike) -> Floats:
    """At least the exact value of what was computed as x from numbers that are not negative, by sums of at most 2^28
    terms, a few products and square roots; underflows change it by less than `LEAST`."""
    return np.asarray(np.asarray(x, dtype=np.float64) * (1 + 2.0**-20) + LEAST)


@dataclass(slots=True)
class Work:
    """Operations so far: multiply-adds of products, and numbers computed otherwise. Raises `Rejected` for too many."""

    done: int = 0

    def spend(self, operations: int) -> None:
        self.done += operations
        require(self.done <= MAX_WORK, "the proof takes too many steps to check")


@dataclass(frozen=True, eq=False)
class Near:
    """All matrices A with |A - mid| <= err, in the Frobenius norm. A NaN or infinite `err` says nothing."""

    mid: Floats
    err: float
    work: Work

    @property
    def T(self) -> Near:
        return Near(self.mid.T, self.err, self.work)

    def norm(self) -> float:
        """At least |A|."""
        self.work.spend(self.mid.size)
        return float(up(up(np.sqrt(np.square(self.mid).sum())) + self.err))

    def rows(self) -> Floats:
        """[row]: at least the norm of each row of A."""
        self.work.spend(self.mid.size)
        return up(up(np.sqrt(np.square(self.mid).sum(axis=1))) + self.err)

    def __add__(self, other: Near) -> Near:
        """The sum; a matrix of one row is added to every row."""
        mid = self.mid + other.mid
        self.work.spend(2 * mid.size)
        copies = [mid.shape[0] / max(1, x.mid.shape[0]) for x in (self, other)]
        err = self.err * copies[0] ** 0.5 + other.err * copies[1] ** 0.5
        return Near(mid, float(up(err + UNIT * float(np.sqrt(np.square(mid).sum())))), self.work)

    def __neg__(self) -> Near:
        return Near(-self.mid, self.err, self.work)

    def __sub__(self, other: Near) -> Near:
        return self + (-other)

    def __matmul__(self, other: Near) -> Near:
        inner = self.mid.shape[1]
        mid = self.mid @ other.mid
        self.work.spend(mid.size * inner)
        x, y = self.norm(), other.norm()
        return Near(mid, float(up(self.err * y + x * other.err + inner * UNIT * x * y)), self.work)

    def lengths(self, gram: Near) -> Floats:
        """[row]: at least sqrt(a G a^T) for each row a of A and each symmetric positive semidefinite G in `gram`."""
        width = self.mid.shape[1]
        squares = ((self.mid @ gram.mid) * self.mid).sum(axis=1)
        self.work.spend(self.mid.size * (width + 2))
        own = up(np.square(self.mid).sum(axis=1))
        size = gram.norm()
        slack = own * (gram.err + 4 * (width + 2) * UNIT * size)
        squares = np.where(np.isfinite(squares), np.maximum(squares, 0), np.inf)
        return up(np.sqrt(up(squares + slack)) + self.err * up(np.sqrt(size)))


def stacked(upper: Near, lower: Near) -> Near:
    """One matrix above another."""
    return Near(np.concatenate([upper.mid, lower.mid]), float(up(upper.err + lower.err)), upper.work)
