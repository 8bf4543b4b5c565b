"""Compiled programs, kept from one run of `corrq` to the next."""

import hashlib
import os
import pathlib
import platform
import warnings

import jax

from corrq_jax.cache import cache_folder


def keep_compiled() -> None:
    """Let JAX keep what it compiles: the second run of a command then starts in half the time.

    The folder is ``compiled`` in `cache_folder`. Where JAX has been told of another, or the folder
    cannot be written to, nothing changes.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder() / "compiled" / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # JAX writes in place: a run that was killed, or a full disk, leaves a part of a program. It is
    # compiled anew then, which needs no word to the user.
    failed = "Error (reading|writing) persistent compilation cache entry"
    warnings.filterwarnings("ignore", failed)


def _machine() -> str:
    """A name for this kind of processor: code compiled for another may not run here."""
    text = platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        known = ("model name", "flags", "Features", "CPU part")
        text += "".join(sorted({line for line in lines if line.startswith(known)}))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
