"""``surefoot evaluate``: how good a trained policy is, in its environment or by what another policy recorded; or how well a
language or reward model orders preferences.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from surefoot.alignment.data.configuration import FormatName
from surefoot.commands.options import DONE, Output, given, parse
from surefoot.control.configuration import Backend
from surefoot.control.configuration.run import WORKER_TIMEOUT
from surefoot.control.episodes import LONGEST_EPISODE
from surefoot.control.recorded.off_policy_evaluation import Estimator
from surefoot.errors import UsageError, on_one_line, require, shown
from surefoot.runs.directory import CONFIGURATION_FILE, read_json
from surefoot.runs.statistics import readable

IN_ENVIRONMENT = (
    "--episodes", "--deterministic", "--backend", "--record", "--env", "--num-envs", "--env-workers", "--worker-timeout",
    "--longest-episode", "--env-kwargs", "--wrapper",
)  # fmt: skip
FROM_DATA = ("--estimator", "--discount", "--clip", "--confidence", "--accept-small-sample")
PREFERENCES = ("--format", "--reference", "--max-length", "--batch-size", "--trust-remote-code")


@dataclass(frozen=True)
class Evaluate:
    """Run a trained policy for whole episodes in Gymnasium's own environment, and report its return; or estimate it from
    recorded episodes of another policy by importance sampling; or score held-out preferences with a reward model or a DPO
    policy.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    episodes: int = 100
    """How many episodes."""
    env: str | None = None
    """The environment; by default the one that the policy was trained in. Where that is Python code, module:callable, it must be named
    here, because a run from elsewhere may name any."""
    num_envs: int | None = None
    """Environments that step together; by default as many as the run had, at most ten."""
    env_workers: int = 0
    """Processes that step Gymnasium's environments, as for training; 0 steps them in this one."""
    worker_timeout: float = WORKER_TIMEOUT
    """Seconds that an environment in a worker process may take to be made, reset or stepped."""
    longest_episode: int | None = LONGEST_EPISODE
    """Cut an episode after this many steps and count what it had returned by then; none lets it go on."""
    env_kwargs: tuple[str, ...] | None = None
    """Arguments of the environment, KEY=VALUE each, in place of all of the run's; by default those of the run."""
    wrapper: tuple[str, ...] | None = None
    """Wrappers around each environment, package.module:function each, the first one innermost; by default those of the run. Where they are
    not Gymnasium's own, they must be named here, like an environment that is code."""
    deterministic: bool = False
    """Take the most probable action instead of a sample."""
    backend: Backend = "gymnasium-sync"
    """What steps the environment: gymnasium-sync is Gymnasium's own; gymnasium (vectorised), envpool and auto are
    re-implementations."""
    seed: int = 0
    """Seed of environments and actions; with --from-data, of the bootstrap and of a fitted behaviour policy."""
    record: Path | None = None
    """Keep the episodes as a Minari data set in this folder, with the log-probability of every action."""
    from_data: Path | None = None
    """A Minari data set, a folder or a name: estimate the return from its episodes instead of acting."""
    estimator: Estimator = "weighted-per-decision"
    """How --from-data weighs: ordinary is unbiased with the largest variance; per-decision weighs each reward by the actions
    before it alone; weighted divides by the sum of the weights, a little bias for much less variance."""
    discount: float = 1.0
    """γ of the return that --from-data estimates; 1 is what evaluation in the environment reports."""
    clip: float | None = None
    """Cut weights at this, relative to their mean for the weighted estimators: less variance, some bias; none keeps
    them."""
    confidence: float = 0.95
    """Of --from-data's interval."""
    accept_small_sample: bool = False
    """Report --from-data's estimate even where the effective sample has collapsed."""
    data: str | None = None
    """Preferences that a run of `surefoot align` is scored on: a file, a folder or a name."""
    format: FormatName = "auto"
    """Format of --data."""
    reference: str | None = None
    """Where the model is that a DPO policy started from; by default where its run found it."""
    max_length: int | None = None
    """Tokens that a prompt and one answer may have; none takes the run's."""
    batch_size: int = 16
    """Prompts of --data at a time."""
    trust_remote_code: bool = False
    """Run the Python files that come with the run's model. Only for models whose files you have read."""
    output: tyro.conf.OmitArgPrefixes[Output] = field(default_factory=Output)


def run(arguments: list[str]) -> int:
    """Evaluate, and report."""
    chosen: Evaluate = parse(Evaluate, arguments, program="surefoot evaluate")
    require(chosen.batch_size >= 1, f"--batch-size must be at least 1, but is {chosen.batch_size}")
    configuration = chosen.run / CONFIGURATION_FILE
    require(
        chosen.data is not None or not configuration.exists() or "method" not in read_json(configuration),
        f"{chosen.run} is a run of `surefoot align`: --data names the preferences that it is scored on",
    )
    if chosen.data is not None:
        if useless := given((*IN_ENVIRONMENT, *FROM_DATA, "--from-data", "--seed"), arguments):
            raise UsageError(f"{useless} does nothing with --data, whose preferences are scored; leave it out")
        result, sentence = _on_preferences(chosen)
    elif useless := given(PREFERENCES, arguments):
        raise UsageError(f"{useless} does nothing without --data; give that, or leave it out")
    elif chosen.from_data is None:
        if useless := given(FROM_DATA, arguments):
            raise UsageError(f"{useless} does nothing without --from-data; give that, or leave it out")
        if not chosen.env_workers and (useless := given(("--worker-timeout",), arguments)):
            raise UsageError(f"{useless} does nothing without --env-workers; give that, or leave it out")
        result, sentence = _in_environment(chosen)
    else:
        if useless := given(IN_ENVIRONMENT, arguments):
            raise UsageError(f"{useless} does nothing with --from-data, which acts in no environment; leave it out")
        result, sentence = _from_data(chosen)
    for said in (*result.get("notices", ()), sentence):
        if shown(said, quiet=chosen.output.quiet):
            print(on_one_line(said), file=sys.stderr)
    chosen.output.give(result)
    return DONE


def _on_preferences(chosen: Evaluate) -> tuple[dict[str, Any], str]:
    from surefoot.alignment.evaluation import evaluate_alignment

    assert chosen.data is not None
    result = evaluate_alignment(
        chosen.run,
        data=chosen.data,
        format=chosen.format,
        reference=chosen.reference,
        max_length=chosen.max_length,
        batch_size=chosen.batch_size,
        trust_remote_code=chosen.trust_remote_code,
    )
    accuracy = "" if result["accuracy"] is None else f"accuracy {result['accuracy']:.4f} ± {result['standard_error']:.4f}, "
    return result, f"{result['method']}: {accuracy}loss {result['loss']:.4f} on {result['prompts']:,} prompts"


def _in_environment(chosen: Evaluate) -> tuple[dict[str, Any], str]:
    settings: dict[str, Any] = {
        "episodes": chosen.episodes,
        "backend": chosen.backend,
        "deterministic": chosen.deterministic,
        "seed": chosen.seed,
        "environment": chosen.env,
        "num_envs": chosen.num_envs,
        "env_workers": chosen.env_workers,
        "worker_timeout": chosen.worker_timeout,
        "longest_episode": chosen.longest_episode,
        "quiet": chosen.output.quiet,
        "env_kwargs": chosen.env_kwargs,
        "wrapper": chosen.wrapper,
    }
    if chosen.record is None:
        from surefoot.control.evaluation import evaluate

        result, kept = evaluate(chosen.run, **settings), ""
    else:
        from surefoot.control.recorded.record import record

        result = record(chosen.run, chosen.record, **settings)
        kept = f"; recorded in {chosen.record}"
    return result, (
        f"{result['env']}: mean return {readable(result['mean_return'], 2)} ± {readable(result['std_return'], 2)} (std)"
        f" over {result['episodes']} episodes{_cut(result, chosen.longest_episode)}{kept}"
    )


def _cut(result: dict[str, Any], longest: int | None) -> str:
    """How many episodes did not end by themselves, where there are such."""
    cut = result["cut_episodes"]
    return (
        f", {cut} of them cut after {longest:,} steps (--longest-episode), with what they had returned by then" if cut else ""
    )


def _from_data(chosen: Evaluate) -> tuple[dict[str, Any], str]:
    from surefoot.control.recorded.off_policy_evaluation import evaluate_from_data

    assert chosen.from_data is not None
    result = evaluate_from_data(
        chosen.run,
        chosen.from_data,
        estimator=chosen.estimator,
        discount=chosen.discount,
        clip=chosen.clip,
        confidence=chosen.confidence,
        seed=chosen.seed,
        accept_small_sample=chosen.accept_small_sample,
    )
    low, high = result["interval"]
    error = "" if result["standard_error"] is None else f" ± {readable(result['standard_error'], 2)} (standard error)"
    return result, (
        f"{result['env']}: estimated return {readable(result['estimated_return'], 2)}{error}, {result['confidence']:.0%} interval"
        f" {readable(low, 2)} … {readable(high, 2)}, from {result['episodes']} episodes of another policy, which returned"
        f" {readable(result['data_mean_return'], 2)}; effective sample {result['effective_sample_size']:.0f},"
        f" largest weight {readable(result['largest_weight'], 2)}"
    )
