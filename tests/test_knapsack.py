"""Choosing options within a total, against all combinations there are."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from corrq_jax.knapsack import hull, total, within_cost, within_loss

# Costs are whole bytes. Losses that are multiples of 1/64 make every sum here exact.
EXACT = st.integers(0, 128).map(lambda n: n / 64)
INEXACT = st.floats(0, 2, allow_subnormal=False)


@st.composite
def instances(draw, losses=EXACT):
    """Costs and losses of 1 to 4 tensors of 1 to 4 options; few costs, so that many are equal."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    cost = st.integers(0, 9).map(float)
    costs = [np.array(draw(st.lists(cost, min_size=n, max_size=n))) for n in sizes]
    return costs, [np.array(draw(st.lists(losses, min_size=n, max_size=n))) for n in sizes]


def all_choices(costs, losses):
    """(cost, loss) of every combination."""
    picks = product(*(range(len(c)) for c in costs))
    return np.array([(total(costs, p), total(losses, p)) for p in picks])


def best(values, of, limit):
    """The smallest value of those whose other sum is within the limit; inf if none is."""
    return values[of <= limit].min(initial=math.inf)


def check(found, costs, losses):
    """The sums of an allocation are those of its picks."""
    assert len(found.picks) == len(costs)
    assert all(type(i) is int for i in found.picks)
    assert found.cost == total(costs, found.picks)
    assert found.loss == total(losses, found.picks)


@given(instance=instances(), budget=st.integers(0, 40).map(lambda n: n / 2))
@example(instance=([np.array([3.0])], [np.array([1.0])]), budget=3.0)
@example(instance=([np.zeros(2)] * 2, [np.zeros(2)] * 2), budget=0.0)
@settings(max_examples=300)
def test_within_cost_against_all_choices(instance, budget):
    costs, losses = instance
    found = within_cost(costs, losses, budget)
    cost, loss = all_choices(costs, losses).T
    optimum = best(loss, cost, budget)
    assert (found is None) == math.isinf(optimum)
    if found is None:
        return
    check(found, costs, losses)
    assert found.cost <= budget
    # A bound divides by differences of cost: exact but for rounding.
    assert found.bound <= optimum + 1e-12
    assert optimum <= found.loss


@given(instance=instances(), limit=st.integers(0, 256).map(lambda n: n / 64))
@example(instance=([np.array([3.0])], [np.array([1.0])]), limit=1.0)
@example(instance=([np.zeros(2)] * 2, [np.zeros(2)] * 2), limit=0.0)
@settings(max_examples=300)
def test_within_loss_against_all_choices(instance, limit):
    costs, losses = instance
    found = within_loss(costs, losses, limit)
    cost, loss = all_choices(costs, losses).T
    optimum = best(cost, loss, limit)
    assert (found is None) == math.isinf(optimum)
    if found is None:
        return
    check(found, costs, losses)
    assert found.loss <= limit
    assert found.bound <= optimum + 1e-9  # costs are up to 36, and a slope has rounding
    assert optimum <= found.cost


@given(instance=instances(INEXACT), share=st.floats(0, 1))
@settings(max_examples=200)
def test_within_loss_of_any_floats(instance, share):
    """The best that is possible is possible, and sums are within limits up to rounding."""
    costs, losses = instance
    smallest = sum(x.min() for x in losses)
    limit = smallest + share * (sum(x.max() for x in losses) - smallest)
    found = within_loss(costs, losses, limit)
    assert found is not None
    assert found.loss <= limit + 1e-12  # limit and loss are sums of floats up to 8
    cost, loss = all_choices(costs, losses).T
    # The bound is of what lies on the other side of the same rounding.
    assert found.bound <= best(cost, loss, limit - 1e-12) + 1e-6


@given(instance=instances(), budget=st.integers(0, 36).map(float))
@settings(max_examples=100)
def test_more_budget_is_never_worse_than_the_bound_of_less(instance, budget):
    less, more = (within_cost(*instance, b) for b in (budget, budget + 2))
    if less is not None:
        assert more is not None
        assert more.bound <= less.bound + 1e-12  # rounding, as above
        assert more.bound <= less.loss + 1e-12


@given(instance=instances())
@settings(max_examples=300)
def test_hull_is_convex_and_below_every_option(instance):
    for costs, losses in zip(*instance, strict=True):
        path = hull(costs, losses)
        x, y = costs[path], losses[path]
        assert costs[path[0]] == costs.min()
        assert losses[path[-1]] == losses.min()
        assert (np.diff(x) > 0).all()
        assert (np.diff(y) < 0).all()
        slopes = np.diff(y) / np.diff(x)
        assert (np.diff(slopes) > 0).all()
        # To the right of the last corner the hull is level.
        assert (np.interp(costs, x, y) <= losses + 1e-12).all(), "interpolation rounds"


def convex_curves(rates, seed=0, tensors=50):
    """Tensors of 1,000 to 1,000,000 weights whose noise falls by 6 dB a bit, as at high rate."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(1e3), np.log(1e6), tensors)).astype(int)
    costs = [np.ceil(n * rates / 8) + 400 for n in sizes]
    return costs, [rng.uniform(0.3, 0.8) * 4.0**-rates for _ in sizes]


WIDTHS, ENTROPIES = np.arange(1.0, 9), np.linspace(0.3, 8, 30)


def budgets(costs):
    least, most = (sum(f(c) for c in costs) for f in (min, max))
    return [least + share * (most - least) for share in (0.1, 0.2, 0.35, 0.5, 0.7)]


@pytest.mark.parametrize("seed", range(3))
def test_the_gap_is_small_for_a_network(seed):
    """All that a relaxation can gain is one step: little where 50 tensors have many small ones."""
    costs, losses = convex_curves(ENTROPIES, seed)
    for budget in budgets(costs):
        found = within_cost(costs, losses, budget)
        assert found.bound <= found.loss <= 1.01 * found.bound
        # What it costs to reach the same loss cannot be much less either.
        back = within_loss(costs, losses, found.loss)
        assert back.bound <= back.cost <= 1.01 * back.bound
        assert back.bound <= found.cost * (1 + 1e-12)  # a slope has rounding


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rates", [WIDTHS, ENTROPIES], ids=["widths", "entropies"])
def test_the_gap_is_at_most_a_step(rates, seed):
    costs, losses = convex_curves(rates, seed)
    for budget in budgets(costs):
        found = within_cost(costs, losses, budget)
        steps = [-np.diff(x) for x in losses]
        # No step that was not taken saves more: it would have been steeper than one that was.
        left = max(s[i] for s, i in zip(steps, found.picks, strict=True) if i < len(s))
        assert found.loss - found.bound <= left * (1 + 1e-9)  # differences round


def test_is_deterministic_and_leaves_its_arguments():
    costs, losses = convex_curves(WIDTHS)
    copies = [x.copy() for x in (*costs, *losses)]
    budget = sum(c.min() for c in costs) * 3
    assert within_cost(costs, losses, budget) == within_cost(costs, losses, budget)
    assert within_loss(costs, losses, 1.0) == within_loss(costs, losses, 1.0)
    for before, after in zip(copies, (*costs, *losses), strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_a_step_leaves_is_spent():
    """The large tensor's step does not fit, the small tensors' later ones do."""
    costs = [np.array([10.0, 100.0]), np.array([1.0, 2.0, 3.0])]
    losses = [np.array([100.0, 1.0]), np.array([1.0, 0.9, 0.85])]
    found = within_cost(costs, losses, 13)
    assert found.picks == (0, 2)
    # The relaxation takes the large tensor's step in part: 1.1 a byte, and 2 bytes are left.
    assert found.bound == pytest.approx(101 - 2 * 99 / 90)


def test_what_is_left_is_spent_off_the_hull_too():
    costs, losses = [np.array([10.0, 12.0, 100.0])], [np.array([100.0, 99.5, 1.0])]
    assert hull(costs[0], losses[0]) == [0, 2]
    assert within_cost(costs, losses, 13).picks == (1,)
    # A loss that need not be so small is given back: the hull alone would pay 100.
    costs = [np.array([10.0, 90.0, 100.0])]
    losses = [np.array([100.0, 50.0, 1.0])]
    assert hull(costs[0], losses[0]) == [0, 2]
    assert within_loss(costs, losses, 60).picks == (1,)


def test_nothing_to_choose():
    assert within_cost([], [], 0).picks == ()
    assert within_loss([], [], 0).picks == ()
    assert within_cost([], [], -1) is None
