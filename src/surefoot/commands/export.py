"""``surefoot export``: a trained policy as a file that needs neither surefoot nor JAX."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from surefoot.commands.options import DONE, Output, parse
from surefoot.control.configuration import Backend
from surefoot.errors import UsageError, on_one_line, require, shown
from surefoot.runs.directory import CONFIGURATION_FILE, MODEL_FOLDER, POLICY_FOLDER, read_json

FILE = "policy.onnx"


@dataclass(frozen=True)
class Export:
    """Write the policy of a run as an ONNX file, with its normaliser and the bounds of its actions inside, and compare the
    file with the policy on random observations; one that differs is not kept.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    format: Literal["onnx"] = "onnx"
    """What is written."""
    out: Path | None = None
    """The file; by default policy/policy.onnx in the run's folder."""
    env: str | None = None
    """The environment, whose dtypes the file has; by default the one that the policy was trained in. Where that is Python code,
    module:callable, it must be named here, because a run from elsewhere may name any."""
    env_kwargs: tuple[str, ...] | None = None
    """Arguments of the environment, KEY=VALUE each, in place of all of the run's; by default those of the run."""
    wrapper: tuple[str, ...] | None = None
    """Wrappers around each environment, package.module:function each, the first one innermost; by default those of the run. Where they are
    not Gymnasium's own, they must be named here, like an environment that is code."""
    backend: Backend = "gymnasium-sync"
    """Whose environment it is: gymnasium-sync is Gymnasium's own; envpool is EnvPool's, for what Gymnasium does not have."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str]) -> int:
    """Export, and report."""
    chosen: Export = parse(Export, arguments, program="surefoot export")
    configuration = chosen.run / CONFIGURATION_FILE
    if configuration.exists() and "method" in read_json(configuration):
        model = chosen.run / MODEL_FOLDER
        raise UsageError(
            f"{chosen.run} is a run of `surefoot align`, which needs no export: its result, {model}, is a Hugging Face folder"
            f" {'already' if model.is_dir() else 'from the moment that the run has one'}"
        )
    file = chosen.out or chosen.run / POLICY_FOLDER / FILE
    require(file.suffix == ".onnx" and not file.is_dir(), f"--out must be a file whose name ends in .onnx, but is {file}")
    from surefoot.control.policies.policy import load_policy

    policy = load_policy(chosen.run)
    from surefoot.control.onnx_export.export import export_policy

    where: dict[str, Any] = {"env_kwargs": chosen.env_kwargs, "wrapper": chosen.wrapper}
    result = export_policy(policy, file, environment=chosen.env, backend=chosen.backend, **where)
    for said in (*result["notices"], _sentence(result)):
        if shown(said, quiet=chosen.output.quiet):
            print(on_one_line(said), file=sys.stderr)
    chosen.output.give(result)
    return DONE


def _sentence(result: dict[str, Any]) -> str:
    differences = ", ".join(f"{name} {value:.2g}" for name, value in result["largest_difference"].items())
    ties = f"; {result['ties']} actions are other ones, as probable within rounding" if result["ties"] else ""
    return (
        f"{result['env']}: written to {result['file']} ({result['bytes']:,} bytes); on"
        f" {result['observations_compared']:,} random observations the largest difference from the policy is"
        f" {differences}{ties}"
    )
