"""Ladders of quantizers: exact k-means for packed codes, rate-distortion theory for coded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from corrq_jax import leaf as leaves
from corrq_jax.core import ladder
from corrq_jax.core.density import SORTED_SIZE
from corrq_jax.core.fit import Method, fit_batch
from corrq_jax.menu import BATCH

BITS = range(1, 9)


def more_samples(seed=3):
    """Eight tensors, each made for one test below; "scaled" and "shifted" are "base" so changed."""
    rng = np.random.default_rng(seed)
    zeros = rng.laplace(size=20_000) * (rng.uniform(size=20_000) < 0.5)
    base = rng.laplace(size=20_000).astype(np.float32)
    arrays = {
        "many": rng.normal(size=200_000),
        "few": np.resize(np.sort(rng.normal(size=400)).astype(np.float16), 20_000),
        "zeros": zeros,
        "base": base,
        "scaled": base * np.float32(-(2.0**-9)),
        "shifted": base + np.float32(4),
        "two": np.resize(np.array([1.0, -3.0]), 100),
        "lattice": rng.integers(-40, 60, size=3000) * 0.3,
    }
    return {name: a.astype(np.float32) for name, a in arrays.items()}


SAMPLES, SMALL, MORE = oracles.samples(), oracles.small_samples(), more_samples()
ALL = SAMPLES | SMALL | MORE
# An exact reference takes seconds a million weights; far from zero, bins are not fine enough.
QUICK = [name for name, w in ALL.items() if w.size <= 20_000 and name != "shifted"]


@pytest.fixture(scope="module")
def measured():
    """Batches of eight: (names, density, normalization); the densities' shape never differs."""
    for search in (ladder.ladders_by_width, ladder.ladders_by_step):
        search.jitted.clear_cache()  # of other tests' shapes: what is compiled is counted below
    found = []
    for samples in (SAMPLES, SMALL, MORE):
        read = [leaves.measure(leaves.read(name, w)) for name, w in samples.items()]
        assert len(read) == BATCH, "the shape that quantize compiles"
        found.append((list(samples), *jax.tree.map(lambda *a: jnp.stack(a), *read)))
    return found


def in_weight_units(found, norm):
    """Boundaries and values as float64 in the units of the weights, which is exact."""
    scale, center = float(norm.scale), float(norm.center)
    back = [np.asarray(a, np.float64) / scale + center for a in (found.boundaries, found.values)]
    return ladder.Ladder(*back, np.asarray(found.mass), np.asarray(found.noise))


def by_name(batches, search):
    """The ladder of every tensor."""
    found = {}
    for names, density, norm in batches:
        ladders = jax.tree.map(np.asarray, search(density, BATCH))
        for i, name in enumerate(names):
            found[name] = in_weight_units(*jax.tree.map(lambda a, i=i: a[i], (ladders, norm)))
    return found


@pytest.fixture(scope="module")
def widths(measured):
    return by_name(measured, ladder.ladders_by_width)


@pytest.fixture(scope="module")
def steps(measured):
    return by_name(measured, ladder.ladders_by_step)


@pytest.fixture(scope="module")
def both(widths, steps):
    return {"widths": widths, "steps": steps}


def entropies(found):
    """Bits a weight of each rung."""
    p = found.mass / found.mass.sum(axis=1, keepdims=True)
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(axis=1)


@pytest.mark.parametrize("name", QUICK)
def test_widths_are_exact_k_means(name, widths):
    w, found = ALL[name], widths[name]
    few = np.unique(w).size <= ladder.POINTS
    for bits in BITS if w.size <= 5000 or name == "student" else (2, 4, 6):
        noise = oracles.noise_of(w, found.boundaries[bits - 1], found.values[bits - 1])
        # Few distinct weights are not reduced: what is left is the float32 of the programming,
        # which cannot tell apart what is that close. Else two points a level at 8 bits remain,
        # which are a poor start where there are only four weights a level.
        limit = 1.003 if bits <= 6 else 1.01 if bits == 7 else 1.05 if w.size > 1000 else 1.1
        expected = oracles.kmeans_noise(w, 2**bits)
        assert noise <= (1 + 1e-5 if few else limit) * expected + 1e-12, bits


@pytest.mark.parametrize("name", ALL)
def test_more_bits_are_never_worse(name, widths):
    """Each cell can be cut in two; what is found is as good as exact to the tolerance above."""
    noise = widths[name].noise
    assert (noise[1:] <= 1.003 * noise[:-1] + 1e-12).all()


def test_widths_are_what_the_single_search_finds(measured, widths):
    """Here for 3 bits; both are exact k-means to that, on reduced densities of unlike sizes."""
    method = Method("optimal", "correlation", "mean", 3)
    for names, density, norm in measured:
        zero = np.zeros(BATCH, np.float32)  # the extremes, which this grid does not read
        noise = np.asarray(fit_batch(density, zero, zero, norm, method, BATCH).noise)
        for name, expected in zip(names, noise, strict=True):
            assert widths[name].noise[2] == pytest.approx(expected, rel=0.002, abs=1e-12), name


@pytest.mark.parametrize("kind", ["widths", "steps"])
@pytest.mark.parametrize("name", ALL)
def test_a_ladder_is_well_formed(kind, name, both):
    found = both[kind][name]
    assert (found.mass.sum(axis=1) == ALL[name].size).all()
    assert (found.mass == np.round(found.mass)).all()
    assert (found.mass >= 0).all()
    for boundaries, values, mass in zip(*found[:3], strict=True):
        finite = np.isfinite(boundaries)
        assert not (np.diff(finite.astype(int)) > 0).any(), "none after the first infinite one"
        assert (np.diff(boundaries[finite]) >= 0).all()
        assert np.isfinite(values).all()
        assert (np.diff(values[mass > 0]) > 0).all()
        assert (mass[1:][~finite] == 0).all()
    if kind == "widths":
        assert ((found.mass > 0).sum(axis=1) <= 2 ** np.array(BITS)).all()


@pytest.mark.parametrize("kind", ["widths", "steps"])
@pytest.mark.parametrize("name", ALL)
def test_masses_values_and_noise_are_those_of_the_weights(kind, name, both):
    w, found = ALL[name].astype(np.float64), both[kind][name]
    every = 1 if w.size <= 20_000 else 7  # each takes a second
    for boundaries, values, mass, noise in zip(*(a[::every] for a in found), strict=True):
        codes = np.searchsorted(boundaries, w, side="left")
        counts = np.bincount(codes, minlength=mass.size)
        if np.count_nonzero(mass) < 2:
            assert noise == pytest.approx(1)
            continue
        # A float32 boundary in normalized units is exact in those of the weights, and cuts no bin.
        np.testing.assert_array_equal(counts, mass)
        # The density rounds weights to 11 bits: next to cells of 6 bits and more not nothing.
        limit = 5e-3 if np.count_nonzero(mass) > 64 else 1e-3
        limit = limit if name != "shifted" else 2e-2  # of 4, not of itself
        exact = oracles.noise_of(w, boundaries, values)
        assert noise == pytest.approx(exact, rel=limit, abs=1e-12)


def constrained_lloyd(w, step, iterations=ladder.RATE_ITERATIONS):
    """Entropy-constrained quantization weight by weight: entropy and noise 1 - rho^2.

    Chou, Lookabaugh and Gray: from equal steps about the median, each weight goes to the level with
    the smallest sum of squared error and lambda times its bits; values are means.
    """
    x = np.sort(w.astype(np.float64))
    step = step * x.std()
    codes = np.round((x - np.median(x)) / step).astype(int)
    trade = np.log(2) / 6 * step**2
    for i in range(iterations + 1):
        _, codes, mass = np.unique(codes, return_inverse=True, return_counts=True)
        values = np.bincount(codes, x) / mass
        p = mass / x.size
        if i < iterations:
            cost = (x[:, None] - values) ** 2 - trade * np.log2(p)
            codes = cost.argmin(axis=1)
    return -(p * np.log2(p)).sum(), ((x - values[codes]) ** 2).mean() / x.var()


@pytest.mark.parametrize("name", ["skewed", "bimodal", "small", "zeros", "base", "lattice"])
def test_steps_are_entropy_constrained_quantization(name, steps):
    rates = entropies(steps[name])
    for step in (0.25, 0.5, 1.0, 2.0):  # where no tail is stretched
        at = ladder.STEPS.index(step)
        rate, noise = constrained_lloyd(ALL[name], step)
        # Boundaries are float16 within the iteration, which may then end a few weights further on;
        # 0.02 bits and 3 % of noise are the same distance on the curve.
        assert rates[at] == pytest.approx(rate, abs=0.02)
        assert steps[name].noise[at] == pytest.approx(noise, rel=0.03)


def test_steps_are_at_the_theory_of_high_rate(steps):
    """Uniform cells with an entropy code lose log2(2 pi e / 12) / 2 = 0.2546 bits to Shannon.

    Gish and Pierce (1968). A Gaussian's noise at rate R is 2**(-2 R) at best.
    """
    rates = entropies(steps["many"])
    lost = np.log2(steps["many"].noise) / 2 + rates
    inside = (rates >= 2.5) & (rates <= 5)
    assert inside.sum() >= 8
    # 200,000 samples are a Gaussian to about 0.002 bits; at 2.5 bits theory is not yet reached.
    np.testing.assert_allclose(lost[inside], 0.2546, atol=0.01)
    assert (lost[rates > 0.1] > 0).all()


@pytest.mark.parametrize("name", ["gaussian", "laplace", "student", "many", "base", "zeros"])
def test_more_rate_is_less_noise(name, steps):
    """Densities that are smooth but for one peak: the coarser the step, the fewer bits."""
    rates, noise = entropies(steps[name]), steps[name].noise
    used = (rates > 0.05) & ((steps[name].mass > 0).sum(axis=1) < 200)  # else levels are too few
    assert used.sum() >= 15
    assert (np.diff(rates[used]) < 0).all()
    assert (np.diff(noise[used]) > 0).all()


def test_a_heavy_tail_has_fine_quantizers_too(steps):
    """Equal steps end before the outliers of Student's t; the tail must not lie in one cell.

    A bit more is a quarter of the noise, about as long as there are levels for it.
    """
    rates, noise = entropies(steps["student"]), steps["student"].noise
    order = np.argsort(rates)
    at = np.interp([3, 4, 5], rates[order], np.log2(noise[order]) / 2)
    np.testing.assert_allclose(np.diff(at), -1, atol=0.1)  # 8 % of the levels, at most


@pytest.mark.parametrize("coarser", range(0, len(ladder.STEPS), 5))
def test_a_peak_at_zero_keeps_its_level(coarser, steps):
    """Half of these weights are zero; a network without its zeros is another one."""
    found = steps["zeros"]
    mass, values = found.mass[coarser], found.values[coarser]
    assert 0 < mass.max() < mass.sum()
    level = int(mass.argmax())
    boundaries = np.concatenate([[-np.inf], found.boundaries[coarser], [np.inf]])
    assert boundaries[level] < 0 <= boundaries[level + 1]
    assert mass[level] >= (ALL["zeros"] == 0).sum()
    # As far as the other weights of the cell are as many on both sides.
    cell = boundaries[level + 1] - boundaries[level] if np.isfinite(boundaries).all() else 1
    assert abs(values[level]) <= 0.02 * max(cell, 1e-2)


def distance(found):
    """Bits above the rate of a Gaussian with this noise: where two curves are, not how far along.

    The iteration has many fixed points; a weight more or less in a cell can lead to another one.
    """
    return entropies(found) + np.log2(np.maximum(found.noise, 1e-12)) / 2


def test_scale_does_not_matter(both):
    """-2**-9 mirrors the weights: ties go to the other side, then 8 bits differ by a per cent."""
    for found in both.values():
        np.testing.assert_allclose(distance(found["scaled"]), distance(found["base"]), atol=0.01)
    noise = [both["widths"][name].noise for name in ("scaled", "base")]
    np.testing.assert_allclose(*(n[:6] for n in noise), rtol=3e-3)  # each is exact to that


def test_shift_does_not_matter(both):
    """But for what bins of float16 resolve: 2**-11 of 4 is a thirtieth of a cell of 5 bits."""
    for found in both.values():
        coarse = entropies(found["base"]) < 5
        ours = (distance(found[name])[coarse] for name in ("shifted", "base"))
        np.testing.assert_allclose(*ours, atol=0.02)
    noise = [both["widths"][name].noise for name in ("shifted", "base")]
    np.testing.assert_allclose(*(n[:5] for n in noise), rtol=3e-3)  # each is exact to that


def test_two_weights_are_two_levels(both):
    for found in both.values():
        rung = int((found["two"].mass > 0).sum(axis=1).argmax())
        used = found["two"].mass[rung] > 0
        assert found["two"].values[rung][used].tolist() == [-3, 1]
        assert found["two"].noise[rung] == 0


def test_cells_of_one_weight_are_without_rounding(both):
    """And zero stays zero: the mean of this tensor is not, and sums about it have rounding."""
    for found in both.values():
        for values, mass, noise in zip(*found["lattice"][1:], strict=True):
            if np.count_nonzero(mass) == 100:
                np.testing.assert_array_equal(values[mass > 0], np.unique(ALL["lattice"]))
                assert noise == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("search", ["ladders_by_width", "ladders_by_step"])
def test_neighbours_in_a_batch_do_not_matter(search, measured, both):
    function = getattr(ladder, search)
    names, density, norm = measured[1]
    order = np.roll(np.arange(BATCH), 3)
    rolled = jax.tree.map(lambda a: a[order], (density, norm))
    found = function(rolled[0], BATCH), rolled[1]
    for i, k in enumerate(order):
        again = in_weight_units(*jax.tree.map(lambda a, i=i: a[i], found))
        expected = both["widths" if search == "ladders_by_width" else "steps"][names[k]]
        jax.tree.map(np.testing.assert_array_equal, again, expected)


@pytest.mark.parametrize("search", ["ladders_by_width", "ladders_by_step"])
def test_only_so_many_are_searched(search, measured):
    """On a CPU the rest stays empty; elsewhere it is searched, too."""
    _, density, _ = measured[1]
    some, every = (getattr(ladder, search)(density, count) for count in (3, BATCH))
    for a, b in zip(some, every, strict=True):
        np.testing.assert_array_equal(a[:3], b[:3])
        assert jax.default_backend() != "cpu" or not np.asarray(a[3:]).any()


def test_one_is_as_in_a_batch(measured, steps):
    names, density, norm = measured[1]

    @jax.jit
    def one(density):
        with jax.enable_x64(True):
            return ladder.by_step(density)

    at = names.index("n1000")
    single, its = jax.tree.map(lambda a: a[at], (density, norm))
    found = in_weight_units(one(single), its)
    np.testing.assert_array_equal(found.mass, steps["n1000"].mass)
    # Sums may be taken in another order.
    np.testing.assert_allclose(found.values, steps["n1000"].values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.noise, steps["n1000"].noise, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("both")
def test_one_compilation_serves_all():
    """Small, large, binned and sorted ones: three batches have gone through, and `quantize` may."""
    assert min(w.size for w in ALL.values()) < SORTED_SIZE < max(w.size for w in ALL.values())
    assert ladder.ladders_by_width.jitted._cache_size() == 1
    assert ladder.ladders_by_step.jitted._cache_size() == 1
