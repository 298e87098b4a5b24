"""Compiled programs: under which of JAX's settings they are traced, the persistent cache, and compiling several at once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import platformdirs
from jax.stages import Compiled, Lowered

from surefoot.errors import UsageError


@contextlib.contextmanager
def fixed_settings(*, x64: bool | None = False) -> Iterator[None]:
    """JAX as every run has it, whatever its process or shell have set for other programs: for tracing, and for single operations.

    Random numbers, types and shapes of intermediate results are then the same everywhere, and so is every bit of a run. Precision of
    matrix products (JAX_DEFAULT_MATMUL_PRECISION), which trades bits for speed on accelerators, and the checks for debugging
    (JAX_DEBUG_NANS) stay as they are set.

    Args:
        x64: whether there are types of 64 bits; None leaves that as it is, for environments written in JAX.

    Raises:
        UsageError: there is no device of the platform that JAX is told to use.
    """
    check_platform()
    with contextlib.ExitStack() as stack:
        for setting in (
            jax.threefry_partitionable(True),
            jax.default_prng_impl("threefry2x32"),
            jax.enable_custom_prng(False),
            jax.legacy_prng_key("allow"),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            jax.disable_jit(False),
        ):
            stack.enter_context(setting)
        if x64 is not None:
            stack.enter_context(jax.enable_x64(x64))
        yield


def check_jax() -> None:
    """Raise UsageError where JAX cannot train: it has nothing to compute on, or may not compile."""
    check_platform()
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise UsageError("JAX is told not to compile (JAX_DISABLE_JIT), and training is compiled programs; unset that")


@functools.cache
def check_platform() -> None:
    """Raise UsageError where JAX has nothing to compute on."""
    try:
        jax.devices()
    except Exception as error:  # JAX's own kinds differ from version to version
        wanted = jax.config.values["jax_platforms"] or jax.config.values["jax_platform_name"]
        if not wanted:
            raise
        raise UsageError(
            f"JAX is told to compute on {wanted} (JAX_PLATFORMS), and finds no such device here; unset that, or take cpu"
        ) from error


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
