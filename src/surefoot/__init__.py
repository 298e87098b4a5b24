"""surefoot: policy optimisation that never takes a step it cannot trust."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own, without its import: the command line begins with this file
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from surefoot.control.policies.policy import Policy

    __version__: str
__all__ = ["__version__", "load"]


def load(run: str | Path) -> Policy:
    """Load the policy of a run: something that maps observations to actions, without an environment and without JAX.

    Args:
        run: the run's folder.

    Raises:
        surefoot.errors.UsageError: there is no policy there, or its file is damaged.
    """
    from surefoot.control.policies.policy import load_policy

    return load_policy(run)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a tenth of a second, which no command needs

        return version("surefoot")
    raise AttributeError(
        f"surefoot has no {name!r}; it has {', '.join(__all__)} and the subpackages equations, control and runs"
    )
