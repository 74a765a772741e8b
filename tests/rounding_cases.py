"""Random enclosures of every kind that breaks rounding, and what each operation must contain, in exact rationals.

Every check takes the module `verifier.rounding` (or a changed copy of it) and raises `Escaped` when an exact value lies
outside the enclosure that the module returned for it. There is no tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any

import flint
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
KINDS = ("ordinary", "float32", "wide", "huge", "tiny", "denormal", "powers", "cancelling", "sparse", "zero")


class Escaped(AssertionError):
    """An exact value outside its enclosure."""


def numbers(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """Random float64 numbers of a kind, of both signs."""
    sign = rng.choice([-1.0, 1.0], shape)
    if kind == "ordinary":
        return sign * rng.random(shape)
    if kind == "float32":
        return (sign * rng.exponential(3.0, shape)).astype(np.float32).astype(np.float64)
    if kind == "wide":
        return sign * 10.0 ** rng.uniform(-300, 300, shape)
    if kind == "huge":
        return sign * 10.0 ** rng.uniform(140, 154, shape)
    if kind == "tiny":
        return sign * 10.0 ** rng.uniform(-308, -150, shape)
    if kind == "denormal":
        return sign * rng.integers(0, 2**20, shape) * 2.0**-1074
    if kind == "powers":
        return sign * 2.0 ** rng.integers(-60, 60, shape)
    if kind == "cancelling":
        found = sign * rng.random(shape) * 2.0 ** rng.integers(0, 60, shape)
        flat = found.reshape(-1)
        half = len(flat) // 2
        flat[:half] = -flat[half : 2 * half] * (1 + rng.integers(-2, 3, half) * 2.0**-50)
        return found
    if kind == "sparse":
        return np.where(rng.random(shape) < 0.1, sign * rng.random(shape), 0.0)
    return np.zeros(shape)


def enclosure(m: ModuleType, rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Any:
    """An enclosure with midpoints of a kind; its radii are zero, or at some entries, or everywhere."""
    mid = numbers(rng, shape, kind)
    amount = rng.integers(0, 3)
    with np.errstate(all="ignore"):
        rad = np.abs(mid) * 2.0 ** rng.integers(-60, 2, shape) + rng.choice([0.0, 2.0**-1074, 2.0**-1000, 1e-9])
    if amount < 2:
        rad = rad * (rng.random(shape) < 0.5 * amount)
    return m.Enclosure(mid, rad)


def exact(x: Array) -> Any:
    """The same numbers as an object array of rationals."""
    out = np.empty(x.shape, dtype=object)
    out.reshape(-1)[:] = [Fraction(v) for v in x.reshape(-1).tolist()]
    return out


def corners(rng: np.random.Generator, e: Any) -> Iterator[Any]:
    """Points of an enclosure, as rationals: its ends, random corners and its middle."""
    mid, rad = exact(e.mid), exact(e.rad)
    for theta in (-1, 1, 0):
        yield mid + rad * theta
    signs = rng.integers(-1, 2, e.mid.shape).astype(object)
    yield mid + rad * signs


def contains(e: Any, value: Any) -> None:
    """Every entry of the object array `value` lies in the enclosure, between `low` and `high`, and below `size`."""
    mid, rad, low, high, size = (exact(np.broadcast_to(x, value.shape)) for x in (e.mid, e.rad, e.low, e.high, e.size))
    for label, bad in (
        ("outside mid +- rad", np.abs(value - mid) > rad),
        ("below low", value < low),
        ("above high", value > high),
        ("larger than size", np.abs(value) > size),
    ):
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise Escaped(f"{label} at {at}: {float(value[at])!r}, {e.mid[at]!r} +- {e.rad[at]!r}")


# --- what each operation must contain


def check_low_high(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    e = enclosure(m, rng, (12,), kind)
    for x in corners(rng, e):
        contains(e, x)


def check_sum(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    a, b = enclosure(m, rng, (12,), kind), enclosure(m, rng, (12,), str(rng.choice(KINDS)))
    if rng.random() < 0.5:  # nearly cancels
        b = m.Enclosure(-a.mid * (1 + 2.0**-52), b.rad)
    for x, y in zip(corners(rng, a), corners(rng, b), strict=True):
        contains(a + b, x + y)
        contains(a - b, x - y)


def check_error(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    e, error = enclosure(m, rng, (12,), kind), np.abs(numbers(rng, (12,), str(rng.choice(KINDS))))
    for x in corners(rng, e):
        contains(e.plus_error(error), x + exact(error))
        contains(e.plus_error(error), x - exact(error))


def check_scaled(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    e, factor = enclosure(m, rng, (12,), kind), float(numbers(rng, (1,), str(rng.choice(KINDS)))[0])
    for x in corners(rng, e):
        contains(e.scaled(factor), x * Fraction(factor))


def check_relu(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    e = enclosure(m, rng, (12,), kind)
    for x in corners(rng, e):
        contains(e.relu(), np.where(x > 0, x, Fraction(0)))


def check_between(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    a, b = numbers(rng, (12,), kind), numbers(rng, (12,), str(rng.choice([kind, *KINDS])))
    low, high = np.minimum(a, b), np.maximum(a, b)
    for ends in ((low, high), (low, np.nextafter(low, np.inf)), (low, low)):
        e = m.between(*ends)
        contains(e, exact(ends[0]))
        contains(e, exact(ends[1]))


def check_product(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    n = int(rng.choice([1, 2, 3, 9]))
    other = str(rng.choice([kind, *KINDS]))
    left, right = enclosure(m, rng, (2, n), kind), enclosure(m, rng, (n, 2), other)
    shape = rng.integers(0, 3)
    if shape == 1:
        left = left[0]
    elif shape == 2:
        left, right = left[0], right[:, 0]
    found = m.product(left, right)
    for x in corners(rng, left):
        for y in corners(rng, right):
            contains(found, np.asarray(x @ y, dtype=object))
    # the worst corners: every term as large as it can be, for the first entry
    row, column = (left if left.mid.ndim == 1 else left[0]), (right if right.mid.ndim == 1 else right[:, 0])
    for way in (-1, 1):
        worst = Fraction(0)
        for a, ar, b, br in zip(row.mid, row.rad, column.mid, column.rad, strict=True):
            a, ar, b, br = Fraction(a), Fraction(ar), Fraction(b), Fraction(br)
            worst += max(way * (a + s * ar) * (b + t * br) for s in (-1, 1) for t in (-1, 1))
        index = (0,) * found.mid.ndim
        contains(found[index], np.asarray(way * worst, dtype=object))


def check_cancelling_product(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    """Dot products whose exact value is far below their terms."""
    x, y = numbers(rng, (10,), kind), numbers(rng, (10,), str(rng.choice(["ordinary", "powers", "float32"])))
    x[5:], y[5:] = x[:5], -y[:5]
    x[4] = x[4] * (1 + 2.0**-40)
    order = rng.permutation(10)
    x, y = x[order], y[order]
    contains(m.product(m.Enclosure.exact(x), m.Enclosure.exact(y)), np.asarray(exact(x) @ exact(y), dtype=object))


def check_long_sparse_product(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    """Few terms among many zeros: the error grows with the terms, the bound must too, and with nothing else."""
    n, terms = 1500, int(rng.integers(1, 12))
    x, y = np.zeros(n), numbers(rng, (n,), str(rng.choice(["ordinary", "float32", "cancelling"])))
    at = rng.choice(n, terms, replace=False)
    x[at] = numbers(rng, (terms,), kind)
    value = sum((Fraction(a) * Fraction(b) for a, b in zip(x[at].tolist(), y[at].tolist(), strict=True)), Fraction(0))
    contains(m.product(m.Enclosure.exact(x), m.Enclosure.exact(y)), np.asarray(value, dtype=object))
    contains(m.product(m.Enclosure.exact(x[None, :]), m.Enclosure.exact(y[:, None])), np.array([[value]], dtype=object))


def check_bound_product(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    size, matrix = np.abs(numbers(rng, (6,), kind)), numbers(rng, (6, 3), str(rng.choice([kind, *KINDS])))
    found = exact(m.bound_product(size, matrix))
    if (found < exact(size) @ np.abs(exact(matrix))).any():
        raise Escaped(f"bound_product({size!r}, {matrix!r}) = {found}")


def check_shrunk(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    size, share = np.abs(numbers(rng, (6,), kind)), float(rng.choice([1.0, 0.3, 1e-200, 2.0**-1000, 5e-324]))
    found = exact(m.shrunk(share, size))
    if (found < exact(size) * Fraction(share)).any():
        raise Escaped(f"shrunk({share!r}, {size!r}) = {found}")


def check_widen(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    radius, steps = np.abs(numbers(rng, (8,), kind)), int(rng.choice([1, 3, 10, 1000]))
    found = exact(m.widen(radius, steps))
    if (found < exact(radius) / (1 - Fraction(2) ** -53) ** steps).any():
        raise Escaped(f"widen({radius!r}, {steps}) = {found}")


def check_gamma(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    for k in (1, 2, 3, 10, 100, 4097, 10**5, 10**6, int(rng.integers(1, 10**6))):
        u = Fraction(2) ** -53
        if Fraction(m.gamma(k)) < k * u / (1 - k * u):
            raise Escaped(f"gamma({k}) = {m.gamma(k)!r}")


def check_exp(m: ModuleType, rng: np.random.Generator, kind: str) -> None:
    points = [*rng.uniform(-800, 720, 8), *rng.uniform(-1, 1, 4), *numbers(rng, (4,), kind), 0.0, 700.0, -700.0, -745.2]
    for x in map(float, points):
        low, high = m.exp_low(x), m.exp_high(x)
        if not (low >= 0 and low <= high):
            raise Escaped(f"exp({x!r}) in [{low!r}, {high!r}]")
        if abs(x) > 10**5:  # beyond every float64
            if (x > 0 and high != np.inf) or (x < 0 and low != 0.0):
                raise Escaped(f"exp({x!r}) in [{low!r}, {high!r}]")
            continue
        value = flint.arb(x).exp()
        if high != np.inf and not flint.arb(high) >= value or not flint.arb(low) <= value:
            raise Escaped(f"exp({x!r}) in [{low!r}, {high!r}]")


CHECKS: dict[str, Callable[[ModuleType, np.random.Generator, str], None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


def search(m: ModuleType, name: str, rounds: int, seed: int = 0) -> None:
    """Runs a check on all kinds, `rounds` times each. A bound that the module refuses (`Unbounded`) is no error."""
    rng = np.random.default_rng(seed)
    with flint_precision(400), np.errstate(all="ignore"):
        for _ in range(rounds):
            for kind in KINDS:
                try:
                    CHECKS[name](m, rng, kind)
                except m.Unbounded:
                    continue


class flint_precision:
    """Arb's working precision, for a while."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def __enter__(self) -> None:
        self.old, flint.ctx.prec = flint.ctx.prec, self.bits

    def __exit__(self, *_: object) -> None:
        flint.ctx.prec = self.old
