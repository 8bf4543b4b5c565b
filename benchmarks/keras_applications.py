"""Every network of keras.applications with random weights: quantized, called, compared.

    KERAS_BACKEND=jax python benchmarks/keras_applications.py [NAME ...] --bits 4 --size 96
    KERAS_BACKEND=jax python benchmarks/keras_applications.py [NAME ...] --settle 64 --inputs 32

Each runs in a process of its own. For each: kernels, those whose shift BatchNorm or a bias takes
up, those that were not reached; the relative error of the outputs without and with matched
moments, and the shift of their mean over the pictures, the size of what varies from picture to
picture over that of the float network, and its correlation with that; how far the outputs of the
adapter are from those of Keras's own `predict` once the decoded weights are assigned to the model,
over the largest output, and whether the best class is the same; traces of two quantized networks
in one jitted function. What it says of the adapter holds
for trained weights too; the errors do not, random weights being harder to quantize than trained
ones or easier. With --settle the statistics of BatchNorm are those of so many pictures of the kind
that is fed, as training leaves them, and networks that rescale inside are fed numbers from about
0 to 255; without it the statistics are drawn, and all are fed noise of variance 1.
"""

import argparse
import subprocess
import sys
import time

import jax
import keras
import numpy as np

from corrq_jax.keras import assign, quantize

COLUMNS = (
    *("network", "million weights", "kernels", "by norm", "by bias", "not reached"),
    *("error", "matched", "shift, size, correlation", "matched"),
    *("off Keras's own", "same class", "traces", "unchanged"),
    *("s to quantize", "s in all"),
)


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


def pictures(seed, count, size, mean, deviation):
    """Noise of this mean and deviation."""
    noise = np.random.default_rng(seed).normal(size=(count, size, size, 3))
    return (mean + deviation * noise).astype(np.float32)


def settle(model, images):
    """Makes the statistics of every BatchNorm those of these images, without dropout."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # a single pass: each layer normalizes by what it will then keep
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    call = jax.jit(lambda *given: model.stateless_call(*given, training=True)[1])
    values = ([v.value for v in model.trainable_variables],
              [v.value for v in model.non_trainable_variables])  # fmt: skip
    for variable, value in zip(model.non_trainable_variables, call(*values, images), strict=True):
        variable.assign(value)


def variation(outputs, expected):
    """How far the mean is off; of what varies the size over the expected one's, and correlation."""
    norm = np.linalg.norm
    means = [y.mean(0, keepdims=True) for y in (outputs, expected)]
    found, wanted = outputs - means[0], expected - means[1]
    shift = norm(means[0] - means[1]) * len(expected) ** 0.5 / norm(expected)
    size = norm(found) / norm(wanted)
    return f"{shift:.3f}, {size:.2f}, {(found * wanted).sum() / norm(found) / norm(wanted):.2f}"


def row(name, bits, size, inputs, settled):
    """One line of the table."""
    begun = time.perf_counter()
    model = network(name, size)
    is_rescaling = any(isinstance(layer, keras.layers.Rescaling) for layer in model.layers)
    mean, deviation = (127.5, 64.0) if settled and is_rescaling else (0.0, 1.0)
    if settled:
        settle(model, pictures(2, settled, size, mean, deviation))
    before = [np.array(v.value) for v in model.variables]
    example = jax.ShapeDtypeStruct((inputs, size, size, 3), np.float32)
    images = pictures(1, inputs, size, mean, deviation)
    start = time.perf_counter()
    matched, report = quantize(
        model,
        bits=bits,
        example=example,
        match_moments=True,
        input_mean=mean,
        input_variance=deviation**2,
    )
    seconds = time.perf_counter() - start
    plain, _ = quantize(model, bits=bits)
    traces = 0

    @jax.jit
    def step(network, x):
        nonlocal traces
        traces += 1
        return network(x)

    expected = model.predict(images, verbose=0)
    outputs = [np.asarray(step(qmodel, images)) for qmodel in (plain, matched)]
    errors = [np.linalg.norm(y - expected) / np.linalg.norm(expected) for y in outputs]
    same = all(np.array_equal(v.value, b) for v, b in zip(model.variables, before, strict=True))
    assign(model, matched.params)
    own = model.predict(images, verbose=0)
    off = np.abs(outputs[1] - own).max() / np.abs(own).max()
    agree = (outputs[1].argmax(-1) == own.argmax(-1)).mean()
    found = report.matched
    return (
        *(name, f"{report.size / 1e6:.1f}", len(report)),
        *(len(found.norms), len(found.biases), len(found.unreached)),
        *(f"{errors[0]:.3f}", f"{errors[1]:.3f}"),
        *(variation(y, expected) for y in outputs),
        *(f"{off:.1e}", f"{agree:.0%}", traces),
        *("yes" if same else "NO", f"{seconds:.0f}", f"{time.perf_counter() - begun:.0f}"),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--inputs", type=int, default=4, help="pictures that are fed")
    parser.add_argument("--settle", type=int, default=0, help="pictures, 0: as drawn")
    parser.add_argument("--here", action="store_true", help="one network, in this process")
    given = parser.parse_args()
    if given.here:
        jax.config.update("jax_default_matmul_precision", "highest")
        for name in given.names:
            found = row(name, given.bits, given.size, given.inputs, given.settle)
            print("|", " | ".join(map(str, found)), "|", flush=True)
        return
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    failed = []
    for name in given.names or names():
        numbers = {
            option: getattr(given, option) for option in ("bits", "size", "inputs", "settle")
        }
        options = [f"--{option}={number}" for option, number in numbers.items()]
        command = [sys.executable, "-W", "ignore", __file__, name, "--here", *options]
        failed += [name] if subprocess.run(command, check=False).returncode else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
