"""From a run to an ONNX file that acts as its policy does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.control.configuration import Backend
from surefoot.control.environments.arguments import Wrapper
from surefoot.control.environments.making import Environment
from surefoot.control.environments.seeding import shared_generators_restored
from surefoot.control.evaluation import open_environments
from surefoot.control.onnx_export.comparison import compare
from surefoot.control.onnx_export.graph import policy_graph
from surefoot.control.playing import Request
from surefoot.control.policies.policy import Policy
from surefoot.errors import UsageError
from surefoot.runs.directory import write_whole


@shared_generators_restored()
def export_policy(
    policy: Policy,
    file: Path,
    *,
    environment: Environment | None = None,
    backend: Backend = "gymnasium-sync",
    env_kwargs: Mapping[str, Any] | Iterable[str] | None = None,
    wrapper: Iterable[Wrapper] | None = None,
) -> dict[str, Any]:
    """Write a policy as an ONNX file, once it has been compared with the policy.

    Args:
        policy: what is written.
        file: where; whole or not at all, and what stood there is replaced.
        environment: what to take instead of the environment that the policy names, as for ``evaluate``. The file has its dtypes.
        backend: whose environment it is; Gymnasium's own by default.
        env_kwargs: arguments of the environment, in place of the run's.
        wrapper: wrappers around it, in place of the run's.

    Returns:
        file, bytes, env, algorithm, input and outputs (dtype and shape each), observations that were compared, the largest
        difference of each output, ties: observations whose action is another choice, as probable within rounding, and notices.

    Raises:
        UsageError: there is no such environment, its spaces are not the policy's, or ONNX cannot say them.
        RunError: the graph does something else than the policy, or the file cannot be written.
    """
    if not all(np.isfinite(value).all() for value in policy.parameters.values()):
        raise UsageError("the policy has weights that are not finite numbers; export one from before they were")
    where: dict[str, Any] = {"environment": environment, "env_kwargs": env_kwargs, "wrapper": wrapper}
    opened = open_environments(policy, Request(episodes=1, backend=backend), **where)
    notices = opened.environments.close()
    spaces = opened.environments.observation_space, opened.environments.action_space
    model = policy_graph(policy, *spaces)
    content = model.SerializeToString()
    agreement = compare(content, policy, *spaces)
    write_whole(file, content)
    return {
        "file": str(file),
        "format": "onnx",
        "bytes": len(content),
        "env": policy.description["env"],
        "algorithm": policy.description["algorithm"],
        "observation": _described(spaces[0]),
        "action": _described(spaces[1]),
        "observations_compared": agreement.observations,
        "largest_difference": agreement.largest_difference,
        "ties": agreement.ties,
        "notices": [*opened.notices, *notices],
    }


def _described(space: Any) -> dict[str, Any]:
    return {"dtype": str(space.dtype), "shape": ["batch", *(space.shape or ())]}
