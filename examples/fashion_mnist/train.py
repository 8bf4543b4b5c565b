"""Train the network `fashion_resnet` on Fashion-MNIST: minutes on two CPU cores.

    python examples/fashion_mnist/train.py fashion_resnet.safetensors

writes the weights, and beside them `fashion_resnet.log`: what was run, where, and how it went.
Needs the extras `files` and `flax`, and the data set (see `corrq_jax.data.read_fashion_mnist`).

The last 5,000 training pictures are held out; all choices were made on them. The test pictures are
looked at once, when all is done.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import corrq_jax
from corrq_jax import models
from corrq_jax.atomic import atomic_write
from corrq_jax.data import preprocessing, read_fashion_mnist
from corrq_jax.metrics import share_interval
from corrq_jax.readers import write_weights

NAME = "fashion_resnet"
HELD_OUT = 5_000
BATCH = 128
EPOCHS = 9
PEAK_RATE = 0.3
WARM_UP = 0.2  # of all steps
MOMENTUM = 0.9
DECAY = 3e-4  # of kernels
SHIFT = 1  # pixels, at most, in each direction

PREPARE = preprocessing("fashion_mnist", 28)


def augmented(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Shifts and mirrors uint8[batch, 28, 28] at random."""
    count, side, _ = images.shape
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    rows, columns = rng.integers(0, 2 * SHIFT + 1, (2, count, 1)) + np.arange(side)
    flip = rng.random(count) < 0.5
    columns[flip] = columns[flip, ::-1]
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalized(images: jax.Array) -> jax.Array:
    """From uint8[batch, 28, 28] what the network takes."""
    return ((images.astype(jnp.float32) - PREPARE.mean) / PREPARE.std)[..., None]


def make_optimizer(model: nnx.Module, steps: int) -> nnx.Optimizer:
    """Nesterov's momentum; the rate rises from 0 and falls to it again, in two straight lines."""
    warm = int(WARM_UP * steps)
    rise, fall = (
        optax.linear_schedule(0.0, PEAK_RATE, warm),
        optax.linear_schedule(PEAK_RATE, 0.0, steps - warm),
    )
    rate = optax.join_schedules([rise, fall], [warm])
    kernels = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    decayed = optax.add_decayed_weights(DECAY, kernels)
    return nnx.Optimizer(
        model, optax.chain(decayed, optax.sgd(rate, MOMENTUM, nesterov=True)), wrt=nnx.Param
    )


@nnx.jit
def train_step(
    model: nnx.Module, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """One step; the loss before it."""

    def loss(model):
        logits = model(normalized(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


@nnx.jit
def right_answers(model: nnx.Module, images: jax.Array, labels: jax.Array) -> jax.Array:
    """How many of a batch's labels are the network's answers."""
    return (model(normalized(images)).argmax(1) == labels).sum()


def accuracy(model: nnx.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of right answers, in inference mode."""
    model.eval()
    parts = range(0, len(labels), 500)
    right = sum(int(right_answers(model, images[i : i + 500], labels[i : i + 500])) for i in parts)
    return right / len(labels)


def train(
    images: np.ndarray,
    labels: np.ndarray,
    held_out: int,
    epochs: int,
    seed: int,
    say: Callable[[str], None],
) -> nnx.Module:
    """The trained network, in inference mode; tells about each epoch."""
    rng = np.random.default_rng(seed)
    model = models.create(NAME, rngs=nnx.Rngs(seed))
    count = len(labels) - held_out
    steps = count // BATCH
    optimizer = make_optimizer(model, epochs * steps)
    for epoch in range(epochs):
        model.train()
        # Else every step flattens the model and the optimizer, for a tenth of its time.
        step = nnx.cached_partial(train_step, model, optimizer)
        order, losses = rng.permutation(count)[: steps * BATCH].reshape(steps, BATCH), []
        for batch in order:
            losses.append(step(augmented(rng, images[batch]), labels[batch]))
        share = accuracy(model, images[count:], labels[count:])
        say(f"epoch {epoch + 1:2}: loss {np.mean(losses):.4f}, held out {100 * share:.2f} %")
    return model


def circumstances(args: argparse.Namespace) -> list[str]:
    """What the log begins with: enough to do the same again."""
    versions = ("jax", "flax", "optax", "numpy")
    devices = jax.devices()
    return [
        f"network: {NAME}; data: Fashion-MNIST (Zalando SE, MIT licence), train split, the last "
        f"{args.held_out:,} held out",
        f"command: python examples/fashion_mnist/train.py {' '.join(sys.argv[1:])}",
        f"seed {args.seed}, {args.epochs} epochs, batch {BATCH}, rate {PEAK_RATE} (warm-up "
        f"{WARM_UP}), momentum {MOMENTUM}, decay {DECAY}, shift {SHIFT}, mirrored",
        f"corrq_jax {corrq_jax.__version__}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in versions)
        + f", python {platform.python_version()}",
        f"device: {len(devices)} x {devices[0].device_kind}, {os.cpu_count()} CPU cores",
    ]


def write(out: pathlib.Path, model: nnx.Module, log: list[str]) -> None:
    """The weights by their paths, and the log beside them."""
    leaves = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    arrays = {"/".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in leaves}
    write_weights(out, arrays, overwrite=True)
    with atomic_write(out.with_suffix(".log"), overwrite=True) as temporary:
        temporary.write_text("\n".join(log) + "\n", encoding="utf-8")


def main() -> None:
    """Reads the arguments, trains, measures, and writes the weights and the log."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=pathlib.Path, help="the .safetensors file to write")
    parser.add_argument("--data", help="the folder with Fashion-MNIST's files")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="training pictures")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.suffix.lower() not in (".safetensors", ".npz") or not args.out.parent.is_dir():
        parser.error(f"{args.out}: name a .safetensors file in a folder that exists")
    log = circumstances(args)
    print(*log, sep="\n")

    def say(line: str) -> None:
        log.append(line)
        print(line, flush=True)

    data, test = (read_fashion_mnist(split, args.data) for split in ("train", "test"))
    started, used = time.perf_counter(), time.process_time()
    model = train(data.images, data.labels, args.held_out, args.epochs, args.seed, say)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    say(f"trained in {seconds:.0f} s, {used:.0f} s of CPU time")
    share = accuracy(model, test.images, test.labels)
    low, high = share_interval(round(share * len(test)), len(test))
    say(f"test: {100 * share:.2f} % ({100 * low:.2f} to {100 * high:.2f}) of {len(test)} pictures")
    write(args.out, model, log)


if __name__ == "__main__":
    main()
