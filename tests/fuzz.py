"""Reads damaged and hostile files of every kind, and says what went wrong.

    python tests/fuzz.py --inputs 1000000 --seed 1 --processes 2 --record done.jsonl
    python tests/fuzz.py --reproduce own 1 4711 --keep bad.safetensors

An input is right if it is refused by an error that names the file, or is read as an independent
reader reads it. It is wrong if anything else is raised, if what comes out differs, if the process
crashes, takes more than 10 s of processor time or 512 MB, starts another process, loads a pickled
class or writes a file. An input is known by kind, seed and number, but for the times that HDF5
stamps on groups. HDF5 files are read by a library that is known to crash and hang on some; that is
counted apart. With --record a run that was stopped goes on where it was.
"""

import argparse
import collections
import concurrent.futures
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
SHARES = {
    "own": 0.3, "stream": 0.15, "npz": 0.15, "torch": 0.15, "torch_old": 0.1, "safetensors": 0.1,
    "h5": 0.03, "keras": 0.02,
}  # fmt: skip
LIBRARY = ("h5", "keras")
BATCH = 5000
TIMEOUT = (
    3600  # seconds for a batch, which takes ten on a quiet machine: only what sleeps is as slow
)


def fuzz(inputs, seed, processes, kinds=tuple(SHARES), report=print, record=None):
    """Counts of what happened by kind; each input that went wrong is reported as it is found."""
    whole = sum(SHARES[kind] for kind in kinds)
    batches = []
    for kind in kinds:
        share = round(inputs * SHARES[kind] / whole)
        batches += [(kind, seed, n, min(n + BATCH, share)) for n in range(0, share, BATCH)]
    batches.sort(key=lambda batch: batch[2])  # all kinds early
    counts = {kind: collections.Counter() for kind in kinds}
    run = functools.partial(_run_once, record, _recorded(record))
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        for batch, found in zip(batches, pool.map(run, batches), strict=True):
            for line in found["wrong"]:
                report(f"{batch[0]} {seed} {line['index']}: {line['what']}")
            counts[batch[0]] += found["counts"]
    return counts


def _recorded(record):
    """What an earlier run found, by batch."""
    lines = record.read_text().splitlines() if record and record.exists() else ()
    return {tuple(line["batch"]): line for line in map(json.loads, lines)}


def _run_once(record, done, batch):
    """A batch, unless it is on record."""
    if batch in done:
        return done[batch]
    found = _run(batch)
    if record:
        with record.open("a") as file:
            file.write(json.dumps({"batch": batch} | found) + "\n")
    return found


def _run(batch):
    kind, seed, start, stop = batch
    counts, wrong = collections.Counter(), []
    while start < stop:
        code, lines, at, found = _child(kind, seed, start, stop)
        wrong += lines
        counts.update(found)
        if at < stop:
            what = "hang" if code in (-signal.SIGPROF, "timeout") else "crash"
            if kind in LIBRARY:
                counts[f"{what} of HDF5"] += 1
            else:
                wrong.append({"index": at, "what": f"{what} ({code})"})
                counts["wrong"] += 1
        start = at + 1
    return {"counts": counts, "wrong": wrong}


def _child(kind, seed, start, stop):
    """A process that reads inputs: how it ended, its lines, the number of the last one, counts."""
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        command = [sys.executable, "-W", "ignore", HERE / "fuzz_child.py", kind, seed, start, stop]
        path = f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
        try:
            done = subprocess.run(
                [str(c) for c in command],
                cwd=folder, env=environment, stdout=-1, stderr=-1, timeout=TIMEOUT, check=False,
            )  # fmt: skip
            code, out, err = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired as error:
            code, out, err = "timeout", error.stdout or b"", error.stderr or b""
        at = pathlib.Path(folder, "at")
        if not at.exists():
            raise RuntimeError(f"{kind}: did not start: {err.decode(errors='replace')[-2000:]}")
        number, counts = json.loads(at.read_text())
    lines = [json.loads(line) for line in out.splitlines() if line.startswith(b'{"index"')]
    return code, lines, number, counts


def table(counts):
    """The counts as a table in Markdown."""
    columns = ["refused", "read", "wrong", "crash of HDF5", "hang of HDF5"]
    rows = [["kind", "inputs", *columns]]
    rows.append(["---"] * len(rows[0]))
    for kind, found in counts.items():
        rows.append([kind, f"{found.total():,}", *(f"{found[c]:,}" for c in columns)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def reproduce(kind, seed, index, keep):
    """Reads one input in this process, in a folder of its own, and says what happens."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from fuzz_child import Watch, input_of, outcome
    from fuzz_kinds import KINDS

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        data = input_of(kind, seed, index)
        pathlib.Path("at").touch()
        if keep:
            keep.write_bytes(data)
        print(outcome(KINDS[kind], data, Watch()))
        os.chdir(HERE)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--record", type=pathlib.Path)
    parser.add_argument("--reproduce", nargs=3, metavar=("KIND", "SEED", "NUMBER"))
    parser.add_argument("--keep", type=lambda p: pathlib.Path(p).absolute())
    given = parser.parse_args()
    if given.reproduce:
        reproduce(*given.reproduce, given.keep)
        return
    counts = fuzz(given.inputs, given.seed, given.processes, given.kinds, record=given.record)
    print(table(counts))
    sys.exit(any(found["wrong"] for found in counts.values()))


if __name__ == "__main__":
    main()
