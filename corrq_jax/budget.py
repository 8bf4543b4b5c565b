"""A target of size or of correlation, shared out over the tensors of a network."""

from collections.abc import Mapping, Sequence

import numpy as np

from corrq_jax.codings import is_entropy_coded
from corrq_jax.config import Config
from corrq_jax.errors import InputError
from corrq_jax.knapsack import Allocation, hull, total, within_cost, within_loss
from corrq_jax.menu import Option
from corrq_jax.report import Budget


def allocate(
    menus: Mapping[str, Sequence[Option]],
    config: Config,
    importance: Mapping[str, float],
    rest_nbytes: int = 0,
) -> tuple[dict[str, Option], Budget]:
    """Choose an option for each tensor so that the target of a configuration is met.

    Args:
        menus: the options of each tensor, by path.
        config: with a target.
        importance: weights of the tensors' losses, by path; 1 where there is none.
        rest_nbytes: bytes of the file that are not in any option.

    Raises:
        InputError: the target cannot be met; the message says what can be.
    """
    target = str(config.target)
    limit = float(getattr(config, target))
    costs = [np.array([o.nbytes for o in menu], float) for menu in menus.values()]
    noise = [np.array([o.noise for o in menu]) for menu in menus.values()]
    weights = [float(importance.get(path, 1.0)) for path in menus]
    losses = [w * n for w, n in zip(weights, noise, strict=True)]
    size = _size(menus)
    if target in ("bits_per_weight", "max_bytes"):
        found = within_cost(costs, losses, bytes_allowed(menus, config, rest_nbytes))
    elif target == "mean_correlation":
        missing = [1 - np.sqrt(1 - n) for n in noise]
        found = within_loss(costs, missing, (1 - limit) * len(menus))
    else:
        found = _each_within(costs, noise, 1 - limit**2)
    if found is None:
        possible = _possible(target, costs, noise, size, rest_nbytes)
        raise InputError(f"{target}={limit:g} cannot be met: {possible}")
    picks = {path: menu[i] for (path, menu), i in zip(menus.items(), found.picks, strict=True)}
    uniform = _uniform(menus, weights, found.cost)
    budget = Budget(
        target=target,
        limit=limit,
        loss=total(losses, found.picks),
        cost=found.cost,
        bound=found.bound,
        uniform_bits=uniform[0],
        uniform_loss=uniform[1],
        curves={path: _curve(menu) for path, menu in menus.items()},
    )
    return picks, budget


def bytes_allowed(menus: Mapping[str, Sequence[Option]], config: Config, rest_nbytes: int) -> float:
    """Bytes that a target of size leaves to all tensors together; infinite for another target.

    Args:
        menus: as `allocate` takes them, like the others.
        config: likewise.
        rest_nbytes: likewise.
    """
    if config.bits_per_weight is not None:
        return config.bits_per_weight * _size(menus) / 8
    return np.inf if config.max_bytes is None else float(config.max_bytes) - rest_nbytes


def _size(menus: Mapping[str, Sequence[Option]]) -> int:
    return sum(menu[0].leaf.flat.size for menu in menus.values())


def _each_within(costs, losses, limit: float) -> Allocation | None:
    """The cheapest option of each tensor whose own loss is within a limit."""
    picks = []
    for cost, loss in zip(costs, losses, strict=True):
        allowed = np.where(loss <= limit, cost, np.inf)
        if not np.isfinite(allowed).any():
            return None
        picks.append(int(allowed.argmin()))
    cost = total(costs, picks)
    return Allocation(tuple(picks), cost, total(losses, picks), cost)


def _possible(target: str, costs, noise, size: int, rest_nbytes: int) -> str:
    least = sum(c.min() for c in costs)
    best = [float(np.sqrt(1 - n.min())) for n in noise]
    match target:
        case "bits_per_weight":
            return f"the smallest possible is {8 * least / max(size, 1):.4g}, everything counted"
        case "max_bytes":
            return (
                f"the smallest possible file has about {least + rest_nbytes:,.0f} bytes, of which "
                f"{rest_nbytes:,} are leaves that are not quantized"
            )
        case "mean_correlation":
            return f"the largest possible is {np.mean(best):.6f}"
    return f"the largest possible is {min(best):.6f}"


def _uniform(
    menus: Mapping[str, Sequence[Option]], weights: Sequence[float], cost: float
) -> tuple[int | None, float | None]:
    """Most bits for all tensors alike, packed, within a cost, and the loss with them."""
    for bits in range(8, 0, -1):
        found = [
            option for menu in menus.values() for option in [o for o in menu if _is_of(o, bits)][:1]
        ]
        if len(found) == len(menus) and sum(o.nbytes for o in found) <= cost:
            return bits, float(sum(w * o.noise for w, o in zip(weights, found, strict=True)))
    return None, None


def _is_of(option: Option, bits: int) -> bool:
    """Whether this is what so many bits make of the tensor; few distinct weights need no more."""
    exact = option.quantizer is None and option.bits <= bits
    return not is_entropy_coded(option.coding) and (exact or option.bits == bits)


def _curve(menu: Sequence[Option]) -> tuple[tuple[float, float], ...]:
    costs, noise = np.array([o.nbytes for o in menu], float), np.array([o.noise for o in menu])
    size = menu[0].leaf.flat.size
    return tuple((8 * float(costs[i]) / size, float(noise[i])) for i in hull(costs, noise))
