"""surefoot: policy optimisation that never takes a step it cannot trust."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surefoot.control.policies.policy import Policy

__version__ = version("surefoot")
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
    raise AttributeError(
        f"surefoot has no {name!r}; it has {', '.join(__all__)} and the subpackages equations, control and runs"
    )
