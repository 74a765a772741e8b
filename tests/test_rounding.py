"""Outward rounding: exact values, in rationals or arb, lie inside every enclosure. Tolerance zero."""

from __future__ import annotations

import numpy as np
import pytest

from certiformer.verifier import rounding
from certiformer.verifier.rounding import Enclosure, Unbounded, between, bound_product, product, shrunk, widen

from .rounding_cases import CHECKS, KINDS, numbers, search

ROUNDS = {"product": 12, "long_sparse_product": 15, "gamma": 3}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_the_exact_value_is_inside(name: str) -> None:
    search(rounding, name, ROUNDS.get(name, 40))


def test_zero_stays_exactly_zero() -> None:
    """Structural zeros carry no radius: unused coordinates stay unused."""
    zero, some = Enclosure.exact(np.zeros((2, 3))), Enclosure.exact(np.full((3, 2), 0.1))
    for found in (
        product(zero, some),
        zero + zero,
        zero - zero,
        zero.scaled(0.1),
        zero.relu(),
        between(zero.mid, zero.mid),
    ):
        assert not found.mid.any() and not found.rad.any()
    assert not widen(np.zeros(3), 100).any() and not bound_product(np.zeros(3), some.mid).any()
    assert not shrunk(0.5, np.zeros(3)).any()


def test_bounds_are_tight_on_ordinary_numbers() -> None:
    """Soundness is not bought by bounds that say nothing."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 50)), rng.normal(size=(50, 20))
    found = product(Enclosure.exact(x), Enclosure.exact(y))
    assert (found.rad < 1e-12).all()
    assert ((found.scaled(3.0) + found).rad < 1e-11).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_overflows_is_refused_and_never_zero(kind: str) -> None:
    """inf times 0 is NaN, and a comparison with NaN is false: neither may pass for a radius of zero."""
    x = np.append(numbers(np.random.default_rng(0), (3,), kind), 1e300)
    huge = Enclosure.exact(x)
    with np.errstate(all="ignore"), pytest.raises(Unbounded, match="not finite"):
        widen(np.array([1.0, np.inf]), 1)
    with np.errstate(all="ignore"), pytest.raises(Unbounded):
        widen(np.array([1.0, np.nan]), 1)
    with np.errstate(all="ignore"), pytest.raises(Unbounded):
        product(huge, huge)
    with np.errstate(all="ignore"), pytest.raises(Unbounded):
        huge.scaled(1e300)
    with np.errstate(all="ignore"), pytest.raises(Unbounded):
        between(np.array([-1.7e308]), np.array([1.7e308]))
    with np.errstate(all="ignore"), pytest.raises(Unbounded):
        bound_product(np.array([np.inf, 1.0]), np.array([[0.0], [1.0]]))


def test_what_underflows_is_not_lost() -> None:
    tiny = Enclosure.exact(np.array([2.0**-600]))
    for found in (tiny.scaled(2.0**-600), product(tiny, tiny)):
        assert found.mid == 0 and found.rad > 0
    assert bound_product(np.array([2.0**-1000]), np.array([[2.0**-149]])) > 0
    assert shrunk(2.0**-1000, np.array([2.0**-149])) > 0
