"""What the importance of kernels brings on a residual network trained on Fashion-MNIST.

Trains the network (or reads its weights, if the file is there), then quantizes it to a range of
budgets with importance ``share**exponent`` and prints the mean logarithm of the KL divergence from
the float network on test pictures, for each exponent; and, for the share itself, which is in use,
what matching of moments brings.

    python benchmarks/importance.py --data FOLDER --weights fashion.npz

FOLDER has the four files of Fashion-MNIST, `train-images-idx3-ubyte.gz` and so on. Training takes
some minutes on 2 cores, and so do the quantizations.
"""

import argparse
import functools
import gzip
import pathlib

import jax
import numpy as np
import optax
from flax import nnx

import corrq_jax as corrq
from corrq_jax.flax import Apply, functional
from corrq_jax.models.inverted_bottlenecks import BottleneckStage as Stage
from corrq_jax.models.inverted_bottlenecks import InvertedBottleneck, conv_norm
from corrq_jax.moments import match_moments, trace
from corrq_jax.paths import flatten

STAGES = (  # blocks, kernel, stride, expansion, features
    *(Stage(1, 3, 1, 1, 16), Stage(3, 3, 1, 4, 24)),
    *(Stage(4, 3, 2, 4, 40), Stage(3, 3, 1, 4, 64)),
)
EPOCHS, BATCH, RATE = 3, 128, 4e-3
EXPONENTS = (0.0, 0.5, 0.75, 1.0)
BUDGETS = tuple(np.arange(1.75, 4.51, 0.25))
PICTURES = 3000


class Network(nnx.Module):
    """MobileNet-like: a stem, inverted bottlenecks with shortcuts, a head and a classifier."""

    def __init__(self, rngs: nnx.Rngs):
        unit = functools.partial(conv_norm, rngs=rngs)
        self.stem = unit(1, 24, 3, 2)
        features, blocks = 24, []
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = 1 if i else stage.stride
                blocks.append(InvertedBottleneck(features, stage, stride, rngs=rngs))
                features = stage.features
        self.blocks = nnx.List(blocks)
        self.head = unit(features, 192)
        self.classifier = nnx.Linear(192, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of pictures float[batch, 28, 28, 1]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.head(x).mean(axis=(1, 2)))


def read(folder: pathlib.Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32[count, 28, 28, 1], normalized, and labels int32[count]."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return (x.astype(np.float32) - 72.9) / 90, np.frombuffer(labels, np.uint8, offset=8).astype(
        np.int32
    )


def train(x: np.ndarray, y: np.ndarray) -> Network:
    network = Network(nnx.Rngs(0))
    network.set_attributes(use_running_average=False, momentum=0.95, raise_if_not_found=False)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = optax.cosine_onecycle_schedule(steps, RATE)
    optimizer = nnx.Optimizer(network, optax.adamw(schedule, weight_decay=1e-4), wrt=nnx.Param)

    @nnx.jit
    def step(network, optimizer, x, y):
        def loss(network):
            return optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()

        optimizer.update(network, nnx.grad(loss)(network))

    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        for batch in order:
            flip = -1 if rng.random() < 0.5 else 1
            step(network, optimizer, x[batch][:, :, ::flip], y[batch])
        print(f"epoch {epoch + 1} of {EPOCHS}", flush=True)
    network.set_attributes(use_running_average=True)
    return network


def load(weights: pathlib.Path, folder: pathlib.Path) -> tuple[Apply, dict]:
    """The network as a function and its parameters, trained if the file is not there."""
    if not weights.exists():
        _, params = functional(train(*read(folder, "train")))
        np.savez(weights, **{path: np.asarray(leaf) for path, leaf in flatten(params)[0]})
    apply, params = functional(Network(nnx.Rngs(0)))
    stored, treedef = np.load(weights), jax.tree.structure(params)
    leaves = [stored[path] for path, _ in flatten(params)[0]]
    return apply, jax.tree.unflatten(treedef, leaves)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of Fashion-MNIST")
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="file of the network")
    chosen = parser.parse_args()
    apply, params = load(chosen.weights, chosen.data)
    x, y = (part[:PICTURES] for part in read(chosen.data, "t10k"))
    logits = jax.jit(apply)
    reference = jax.nn.log_softmax(logits(params, x))
    print(f"float top-1 on {PICTURES} test pictures: {(reference.argmax(1) == y).mean():.3f}")
    wiring = trace(apply, params, jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32))

    def log_kl(tree) -> float:
        found = jax.nn.log_softmax(logits(corrq.dequantize(tree), x))
        return float(np.log((np.exp(reference) * (reference - found)).sum(1).mean()))

    def quantized(budget: float, coding: str, exponent: float):
        importance = {path: share**exponent for path, share in wiring.shares.items()}
        options = {"bits_per_weight": budget, "coding": coding, "importance": importance}
        return corrq.quantize(params, **options)[0]

    for coding in ("packed", "entropy"):
        found: dict[float, np.ndarray] = {}
        for exponent in EXPONENTS:
            trees = [quantized(budget, coding, exponent) for budget in BUDGETS]
            found[exponent] = np.array([log_kl(match_moments(wiring, params, t)[0]) for t in trees])
            if exponent == 1:
                unmatched = np.array([log_kl(t) for t in trees])
        for exponent, values in found.items():
            less = values - found[0.0]
            error = less.std() / len(less) ** 0.5
            print(
                f"{coding}, share**{exponent:g}: mean log KL {values.mean():.3f}, against all "
                f"alike {less.mean():+.3f} +- {error:.3f}",
                flush=True,
            )
        print(f"{coding}, by share, moments not matched: {unmatched.mean():.3f}")


if __name__ == "__main__":
    main()
