"""Which option to take of each tensor's, so that a total of bytes or of losses is met.

Each tensor offers options, each with a cost in bytes and a loss. Taking one of each for the
smallest sum of losses within a budget is a multiple-choice knapsack. Its linear relaxation is
solved exactly by walking down the convex hulls of all tensors in order of slope; the last step that
does not fit is what is fractional, so the relaxation bounds how much better any choice could be.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A choice of one option for each tensor.

    Attributes:
        picks: index of the option of each tensor.
        cost: sum of their costs.
        loss: sum of their losses.
        bound: no choice does better than this: a loss if a budget of cost was given, a cost if a
            limit of loss was.
    """

    picks: tuple[int, ...]
    cost: float
    loss: float
    bound: float


def hull(costs: np.ndarray, losses: np.ndarray) -> list[int]:
    """Indices of the lower convex hull of (cost, loss), from the cheapest option to the best.

    >>> hull(np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 8.0, 1.0, 2.0]))
    [0, 2]
    """
    found: list[int] = []
    for i in np.lexsort((losses, costs)):
        if found and losses[i] >= losses[found[-1]]:
            continue
        while len(found) > 1 and _slope(costs, losses, found[-2], found[-1]) <= _slope(
            costs, losses, found[-1], i
        ):
            found.pop()
        found.append(int(i))
    return found


def _slope(costs: np.ndarray, losses: np.ndarray, i: int, j: int) -> float:
    """Loss that a unit of cost saves between two options."""
    return (losses[i] - losses[j]) / max(costs[j] - costs[i], 1e-300)


def _steps(costs: Sequence[np.ndarray], losses: Sequence[np.ndarray]):
    """The cheapest pick of each tensor, and all steps (tensor, from, to), steepest first."""
    hulls = [hull(c, x) for c, x in zip(costs, losses, strict=True)]
    steps = [
        (_slope(costs[t], losses[t], i, j), t, i, j)
        for t, path in enumerate(hulls)
        for i, j in pairwise(path)
    ]
    return [path[0] for path in hulls], sorted(steps, key=lambda step: -step[0])


def total(values: Sequence[np.ndarray], picks: Sequence[int]) -> float:
    """Sum of the values of the picked options."""
    return float(sum(v[i] for v, i in zip(values, picks, strict=True)))


def within_cost(
    costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], budget: float
) -> Allocation | None:
    """The smallest sum of losses whose sum of costs is within a budget.

    Args:
        costs: for each tensor the costs of its options, float64[options].
        losses: for each tensor their losses, float64[options].
        budget: the largest sum of costs.

    Returns:
        The choice, whose ``bound`` is a lower bound of the loss; None if even the cheapest options
        exceed the budget.

    >>> costs = [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    >>> within_cost(costs, [np.array([4.0, 1.0]), np.array([4.0, 3.0])], 3).picks
    (1, 0)
    """
    picks, steps = _steps(costs, losses)
    cost, bound = total(costs, picks), None
    if cost > budget:
        return None
    blocked: set[int] = set()
    for slope, t, i, j in steps:
        more = costs[t][j] - costs[t][i]
        if t in blocked or cost + more > budget:
            if bound is None:
                bound = total(losses, picks) - slope * (budget - cost)
            blocked.add(t)  # a later step of its hull starts from where it did not get
            continue
        picks[t], cost = j, cost + more
    picks = _spend(costs, losses, picks, budget)
    loss = total(losses, picks)
    bound = loss if bound is None else max(bound, 0.0)
    return Allocation(tuple(picks), total(costs, picks), loss, min(bound, loss))


def _spend(
    spent: Sequence[np.ndarray], saved: Sequence[np.ndarray], picks: list[int], limit: float
) -> list[int]:
    """Make the single changes that save most, while what they spend stays within a limit."""
    picks = list(picks)
    left = limit - total(spent, picks)
    while True:
        best, change = 0.0, None
        for t, i in enumerate(picks):
            gain = np.where(spent[t] - spent[t][i] <= left, saved[t][i] - saved[t], 0.0)
            j = int(gain.argmax())
            if gain[j] > best:
                best, change = float(gain[j]), (t, j)
        if change is None:
            return picks
        t, j = change
        left -= spent[t][j] - spent[t][picks[t]]
        picks[t] = j


def within_loss(
    costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: float
) -> Allocation | None:
    """The smallest sum of costs whose sum of losses is within a limit.

    Returns:
        The choice, whose ``bound`` is a lower bound of the cost; None if even the best options
        exceed the limit.

    >>> costs = [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    >>> within_loss(costs, [np.array([4.0, 1.0]), np.array([4.0, 3.0])], 5.5).picks
    (1, 0)
    """
    picks, steps = _steps(costs, losses)
    loss, bound = total(losses, picks), None
    for slope, t, _, j in steps:
        if loss <= limit:
            break
        cost, picks[t] = total(costs, picks), j
        less = total(losses, picks)  # not by steps, whose rounding would add up
        if less <= limit and slope > 0:
            bound = cost + (loss - limit) / slope
        loss = less
    if loss > limit * (1 + 1e-12):
        return None
    picks = _spend(losses, costs, picks, limit)
    cost = total(costs, picks)
    bound = cost if bound is None else bound
    return Allocation(tuple(picks), cost, total(losses, picks), min(bound, cost))
