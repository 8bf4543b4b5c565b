"""Memory and time of quantizing from file to file: synthetic networks of an LLM's shapes, on disk.

The quantizer runs in a process of its own, whose peak of resident memory is read from `/proc`, and
which may be given a limit. See benchmarks/README.md.
"""

import argparse
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile

import h5py
import ml_dtypes
import numpy as np

from corrq_jax.lazy import LazyArray
from corrq_jax.readers.safetensors_file import write_safetensors

HIDDEN, INNER, VOCABULARY, KEYS = 4096, 11008, 32000, 1024
BLOCK = 1 << 22
MB = 1e6
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

CHILD = """
import json, resource, sys, time
import corrq_jax as corrq

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

job = json.loads(sys.argv[1])
if job.get("limit"):
    resource.setrlimit(getattr(resource, job["kind"]), (job["limit"], job["limit"]))
started = time.perf_counter()
if job.get("restore"):
    corrq.dequantize_file(job["source"], job["target"])
else:
    corrq.quantize_file(job["source"], job["target"], corrq.Config(**job["options"]))
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "peak": status("VmHWM")}))
"""


def shapes(nbytes: float) -> dict[str, tuple[int, ...]]:
    """Tensors of a decoder, as many layers of 2-byte weights as fill the size."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    number = 0
    while 2 * sum(int(np.prod(s)) for s in found.values()) < nbytes:
        found |= {f"model.layers.{number}.{n}.weight": s for n, s in layer.items()}
        number += 1
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def weights(seed: int, shape: tuple[int, ...], dtype: np.dtype = BFLOAT16) -> LazyArray:
    """Student's t with 4 degrees of freedom, made when it is asked for, in pieces."""

    def load() -> np.ndarray:
        rng = np.random.default_rng(seed)
        # A block of samples in another order for each row: the samples themselves take long.
        block = (rng.standard_t(4, BLOCK) / np.sqrt(shape[-1])).astype(dtype)
        flat = np.empty(int(np.prod(shape)), dtype)
        for start in range(0, flat.size, BLOCK):
            part = flat[start : start + BLOCK]
            part[:] = np.roll(block, rng.integers(BLOCK))[: part.size]
        return flat.reshape(shape)

    return LazyArray(shape, dtype, load)


def make(folder: pathlib.Path, nbytes: float, shards: int) -> pathlib.Path:
    """A folder of Hugging Face with a network of that size in so many files; or a single file."""
    folder.mkdir()
    arrays = {n: weights(i, s) for i, (n, s) in enumerate(shapes(nbytes).items())}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", arrays, metadata={"format": "pt"})
        return folder
    weight_map, names = {}, list(arrays)
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        own = {name: arrays[name] for name in names[i::shards]}
        write_safetensors(folder / file, own, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_h5(path: pathlib.Path, arrays: dict[str, LazyArray], **options) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array.load(), **options)


def write_keras(path: pathlib.Path, arrays: dict[str, LazyArray]) -> None:
    """As Keras does: the HDF5 file is stored as it is."""
    inner = path.with_suffix(".weights.h5")
    write_h5(inner, arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "model.weights.h5")
    inner.unlink()


def write_npz(path: pathlib.Path, arrays: dict[str, LazyArray], order="C", save=np.savez) -> None:
    save(path, **{name: np.asarray(array, order=order) for name, array in arrays.items()})


in_columns = functools.partial(write_npz, order="F")
FORMATS = {
    "h5": (".h5", write_h5),
    "h5-gzip": (".h5", functools.partial(write_h5, compression="gzip", compression_opts=1)),
    "keras": (".keras", write_keras),
    "npz": (".npz", write_npz),
    "npz-columns": (".npz", in_columns),
    "npz-columns-compressed": (".npz", functools.partial(in_columns, save=np.savez_compressed)),
}


def measure_formats(chosen: argparse.Namespace) -> None:
    """Quantize a network in float32 whose largest tensor has that shape, from each format."""
    named = {"large": chosen.largest, "wide": (1024, 8192), "conv": (3, 3, 512, 512)}
    arrays = {n: weights(i, s, np.dtype("f4")) for i, (n, s) in enumerate(named.items())}
    largest = arrays["large"].nbytes
    for name in chosen.formats:
        suffix, write = FORMATS[name]
        source = chosen.folder / f"network{suffix}"
        target = chosen.folder / "quantized.safetensors"
        write(source, arrays)
        result = run({"source": source, "target": target, "options": chosen.options})
        show(name, result, sum(array.nbytes for array in arrays.values()), largest)
        for file in (source, target):
            file.unlink()


def show(what: str, result: dict, nbytes: int, largest: int) -> None:
    allowed = 1.5 * largest + 400 * MB
    good = "" if result["peak"] <= allowed else "  TOO MUCH"
    rate = nbytes / MB / result["seconds"]
    print(
        f"{what:23} peak {result['peak'] / MB:6.0f} of {allowed / MB:.0f} MB, "
        f"{result['seconds']:6.1f} s, {rate:5.0f} MB/s{good}",
        flush=True,
    )


def run(job: dict) -> dict:
    command = [sys.executable, "-c", CHILD, json.dumps(job, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def kill_and_go_on(job: dict, times: int, seconds: float) -> None:
    """Start a run and kill it, so many times, evenly spread over how long it takes."""
    for i in range(times):
        child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(job, default=str)])
        time.sleep(seconds / (times + 1))
        child.kill()
        child.wait()
        target = pathlib.Path(job["target"])
        kept = list((target.parent / f".{target.name}.parts").glob("*.part.safetensors"))
        print(f"killed ({i + 1}): {len(kept)} parts are kept", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="an empty folder on a disk with room")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the network")
    parser.add_argument("--shards", type=int, default=1, help="files it is in")
    parser.add_argument("--options", type=json.loads, default={"bits": 4}, help="of Config, JSON")
    parser.add_argument("--limit", type=float, default=0, help="of memory, in GB; 0 for none")
    kinds = ("RLIMIT_DATA", "RLIMIT_AS")
    parser.add_argument("--kind", choices=kinds, default="RLIMIT_AS", help="what is limited")
    parser.add_argument("--kills", type=int, default=0, help="run again, killed so many times")
    parser.add_argument("--restore", action="store_true", help="restore it, too")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, help="measure these instead")
    shape = {"type": int, "nargs": "+", "default": (8192, 8192)}
    parser.add_argument("--largest", **shape, help="shape of the largest tensor in them")
    chosen = parser.parse_args()
    if chosen.formats:
        measure_formats(chosen)
        return
    free, needed = shutil.disk_usage(chosen.folder).free, 3.5e9 * chosen.gigabytes
    if free < needed:
        raise SystemExit(f"{needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} are free")
    started = time.perf_counter()
    source = chosen.folder / "network"
    if not source.exists():
        make(source, 1e9 * chosen.gigabytes, chosen.shards)
    nbytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    largest = 2 * VOCABULARY * HIDDEN
    print(f"made in {time.perf_counter() - started:.0f} s: {nbytes / 1e9:.2f} GB", flush=True)
    quantized = chosen.folder / "quantized"
    job = {
        "source": source, "target": quantized, "options": chosen.options,
        "limit": int(1e9 * chosen.limit), "kind": chosen.kind,
    }  # fmt: skip

    result = run(job)
    show("quantized", result, nbytes, largest)
    if chosen.kills:
        again = {**job, "target": chosen.folder / "again"}
        kill_and_go_on(again, chosen.kills, result["seconds"])
        show("went on", run(again), nbytes, largest)
        files = [str(folder / "corrq.safetensors") for folder in (quantized, again["target"])]
        same = subprocess.run(["cmp", *files], check=False).returncode == 0
        print("the same bytes" if same else "OTHER BYTES")
    if chosen.restore:
        job = {**job, "source": quantized, "target": chosen.folder / "restored", "restore": True}
        show("restored", run(job), nbytes, largest)
    if not chosen.keep:
        for name in ("network", "quantized", "again", "restored"):
            shutil.rmtree(chosen.folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
