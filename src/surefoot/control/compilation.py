"""Compiled programs: the persistent cache, and compiling several at once."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import platformdirs
from jax.stages import Compiled, Lowered


def cache_folder() -> Path:
    """Where compiled programs are kept: in the user's cache folder, safe to delete, one folder per kind of processor.

    A program compiled for one processor may not run on another that shares the home directory.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    return platformdirs.user_cache_path("surefoot") / f"xla-{hashlib.sha256(processor.encode()).hexdigest()[:12]}"


def use_persistent_cache() -> None:
    """Keep compiled programs between processes, unless the user has set JAX's own cache
    (JAX_COMPILATION_CACHE_DIR).

    What lies there is machine code that runs: a folder that is another user's, or that others may write to, is not used.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        private = _made_private(folder)
    except OSError:
        return  # a read-only home costs start-up time, nothing else
    if private and os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _made_private(folder: Path) -> bool:
    """Whether nobody else can write into the folder; one's own is closed to them."""
    if not hasattr(os, "geteuid"):  # Windows, where a user's folders are the user's
        return True
    found = folder.lstat()
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
        return False
    if found.st_mode & 0o022:
        folder.chmod(0o700)
    return True


def compile_all(programs: dict[str, Lowered]) -> dict[str, Compiled]:
    """Compile lowered programs side by side: compilation leaves Python's lock.

    Returns:
        the compiled programs by the same names.
    """
    with ThreadPoolExecutor(2) as threads:
        futures = {name: threads.submit(program.compile) for name, program in programs.items()}
        return {name: future.result() for name, future in futures.items()}


def give_back_memory() -> None:
    """Return to the system what compiling took and let go of: glibc keeps it in pieces, and takes more for the next program."""
    with contextlib.suppress(OSError, AttributeError):  # other systems have no such call, and other allocators
        ctypes.CDLL(None).malloc_trim(0)


def forget(function_name: str) -> None:
    """Remove a function's programs from the persistent cache.

    A program that holds an EnvPool's address is of no use to another process, and would fill the cache run by run.
    """
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder is not None and "://" not in folder:
        for path in Path(folder).glob(f"jit_{function_name}-*"):
            path.unlink(missing_ok=True)
