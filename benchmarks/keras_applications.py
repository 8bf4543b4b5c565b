"""Every network of keras.applications with random weights: quantized, called, compared.

    KERAS_BACKEND=jax python benchmarks/keras_applications.py [NAME ...] --bits 4 --size 96

For each: kernels, those whose shift BatchNorm or a bias takes up, those that were not reached, the
relative error of the outputs without and with matched moments, and traces of two quantized networks
in one jitted function. What it says of the adapter holds for trained weights too; the errors do
not, random weights being harder to quantize than trained ones or easier.
"""

import argparse
import gc
import time

import jax
import keras
import numpy as np

from corrq_jax.keras import functional, quantize


def names():
    """Of the functions of keras.applications that build a network."""
    found = (n for n in dir(keras.applications) if n[0].isupper())
    return sorted(n for n in found if callable(getattr(keras.applications, n)))


def random_value(rng, kind, shape):
    """Values that keep signals at the order of one through any number of layers."""
    if kind == "seed_generator_state":
        return np.array([0, 7], np.uint32)
    if kind in ("gamma", "moving_variance", "variance"):
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) < 2:
        return rng.normal(0, 0.3, shape)
    inputs = np.prod(shape[:2]) if kind == "depthwise_kernel" else np.prod(shape[:-1])
    return rng.normal(0, np.sqrt(2 / inputs), shape)


def network(name, size):
    """The network with random variables; Keras's own initializers compile for every shape."""
    create = getattr(keras.applications, name)
    with keras.StatelessScope(initialize_variables=False):
        options = {"classes": 1000, "classifier_activation": None}
        model = create(weights=None, input_shape=(size, size, 3), **options)
    keras.backend.clear_session()  # forgets which variables it wanted to initialize later
    rng = np.random.default_rng(0)
    for variable in model.variables:
        kind = variable.path.rpartition("/")[2]
        variable.assign(random_value(rng, kind, tuple(variable.shape)))
    return model


def row(name, bits, size):
    """One line of the table."""
    model = network(name, size)
    before = [np.array(v.value) for v in model.variables]
    example = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    images = np.random.default_rng(1).normal(size=example.shape).astype(np.float32)
    start = time.perf_counter()
    matched, report = quantize(model, bits=bits, example=example, match_moments=True)
    seconds = time.perf_counter() - start
    plain, _ = quantize(model, bits=bits)
    traces = 0

    @jax.jit
    def step(network, x):
        nonlocal traces
        traces += 1
        return network(x)

    apply, params = functional(model)
    expected = np.asarray(jax.jit(apply)(params, images))
    outputs = [np.asarray(step(qmodel, images)) for qmodel in (plain, matched)]
    errors = [np.linalg.norm(y - expected) / np.linalg.norm(expected) for y in outputs]
    same = all(np.array_equal(v.value, b) for v, b in zip(model.variables, before, strict=True))
    found = report.matched
    return (
        *(name, len(report), len(found.norms), len(found.biases), len(found.unreached)),
        *(f"{errors[0]:.3f}", f"{errors[1]:.3f}", traces, "yes" if same else "NO"),
        *(f"{report.size / 1e6:.1f}", f"{seconds:.0f}"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--size", type=int, default=96)
    given = parser.parse_args()
    print(
        "| network | kernels | by norm | by bias | not reached | error | matched | traces |", end=""
    )
    print(" unchanged | million weights | s to quantize |\n" + "|---" * 11 + "|")
    for name in given.names or names():
        print("|", " | ".join(map(str, row(name, given.bits, given.size))), "|", flush=True)
        gc.collect()
        jax.clear_caches()


if __name__ == "__main__":
    main()
