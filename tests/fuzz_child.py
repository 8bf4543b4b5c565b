"""Reads damaged inputs, one after the other, in a process that may crash, hang or eat memory.

    python fuzz_child.py KIND SEED START STOP

In an empty folder of its own. Before each input its number goes into the file "at", with the
counts so far, so that the parent knows which one killed this process; what is wrong is a line of
JSON on stdout.
"""

import collections
import json
import os
import pathlib
import random
import resource
import signal
import sys
import traceback

from fuzz_kinds import KINDS, same

import corrq_jax as corrq

SECONDS = 10  # of processor time an input: no small file may take longer
MEGABYTES = 512  # of memory beyond what the process has once it is warm
FORBIDDEN = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn"),
    *("subprocess.Popen", "pickle.find_class", "socket.connect", "os.remove", "os.rename"),
    *("ctypes.dlopen", "shutil.rmtree", "os.mkdir", "os.putenv"),
)


class Watch:
    """Notes what a reader must not do: start a process, load pickled classes, write files."""

    def __init__(self):
        self.is_on = False
        self.seen = []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.is_on and (event in FORBIDDEN or (event == "open" and self.is_writing(arguments))):
            self.seen.append(f"{event} {arguments!r}"[:200])

    @staticmethod
    def is_writing(arguments):
        _, mode, flags = arguments
        return any(c in (mode or "") for c in "wax+") or bool(
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )


def outcome(kind, data, watch):
    """'refused' or 'read', or what is wrong."""
    path = pathlib.Path(f"input{kind.suffix}").absolute()
    path.write_bytes(data)
    watch.seen.clear()
    watch.is_on = True
    try:
        found = kind.read(path)
    except corrq.CorrqError as error:
        if str(path) not in str(error):
            return f"the error does not name the file: {error}"
        found = None
    except BaseException:
        return traceback.format_exc(limit=-6)
    finally:
        watch.is_on = False
    if watch.seen:
        return f"it did {watch.seen[:3]}"
    if set(os.listdir()) != {path.name, "at"}:  # noqa: PTH208
        return f"it made {os.listdir()}"  # noqa: PTH208
    if found is None:
        return "refused"
    try:
        again = kind.again(data)
    except Exception:  # an independent reader raises anything for what it does not allow
        return "it was read, and is not to be read: " + traceback.format_exc(limit=-3)
    return "read" if same(found, again) else f"read as {found!r}, and it is {again!r}"[:2000]


def input_of(name, seed, index):
    """The bytes of an input, known by these three."""
    return KINDS[name].make(random.Random(f"{seed} {name} {index}"))


def main(name, seed, start, stop):
    kind, watch, counts = KINDS[name], Watch(), collections.Counter()
    for index in range(-20, 0):  # imports what it needs, and makes what is damaged
        outcome(kind, input_of(name, "warm", index), watch)
    virtual = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + (MEGABYTES << 20),) * 2)
    at = os.open("at", os.O_WRONLY | os.O_CREAT)
    for index in range(int(start), int(stop)):
        os.pwrite(at, json.dumps([index, counts]).ljust(200).encode(), 0)
        data = input_of(name, seed, index)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        what = outcome(kind, data, watch)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if what not in ("refused", "read"):
            print(json.dumps({"index": index, "what": what}), flush=True)
            what = "wrong"
        counts[what] += 1
    os.pwrite(at, json.dumps([int(stop), counts]).ljust(200).encode(), 0)


if __name__ == "__main__":
    # Crashes are the parent's to report; no dump of memory is wanted.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(*sys.argv[1:])
