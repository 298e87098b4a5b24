"""Compiled programs: the persistent cache, and compiling several at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import platformdirs

UNCACHED_SECONDS = 1e9


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
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home costs start-up time, nothing else
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def not_cached() -> Iterator[None]:
    """Keep what is compiled inside out of the persistent cache: a program that holds an EnvPool's address is of no
    use to another process.

    The setting is global, so nothing else may be compiling meanwhile.
    """
    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", UNCACHED_SECONDS)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def compile_all(programs: dict[str, tuple[Any, tuple[Any, ...]]]) -> dict[str, Any]:
    """Compile programs side by side, each from a jitted function and its arguments (arrays or shapes): compilation
    leaves Python's lock.

    Returns:
        the compiled programs by the same names.
    """
    with ThreadPoolExecutor(max(1, len(programs))) as threads:
        futures: dict[str, Future[Any]] = {
            name: threads.submit(lambda f, a: f.lower(*a).compile(), function, arguments)
            for name, (function, arguments) in programs.items()
        }
        return {name: future.result() for name, future in futures.items()}
