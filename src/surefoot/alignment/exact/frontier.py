"""The report of ``surefoot frontier``: every method on every task, placed on the exact frontier of reward and KL divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surefoot.alignment.exact.language import LanguageTask
from surefoot.alignment.exact.models import TASKS, make_task
from surefoot.alignment.exact.processes import Call, each_in_its_own_process
from surefoot.alignment.exact.runs import METHODS, ONLINE, RewardModel, Run, carry_out, train_reward_model, unseen_answers
from surefoot.alignment.exact.tasks import PreferenceTask, frontier, mean_kl_divergence, measure_policy, optimal_policy
from surefoot.errors import require

__all__ = ["CHANGES", "FAILURES", "Plan", "frontier_report", "plan_frontier"]

CHANGES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ppo", "ψ whitened", {"whiten_advantages": True}),
    ("ppo", "rewards whitened", {"whiten_rewards": True}),
    ("ppo", "λ = 0.95", {"trace_decay": 0.95}),
    ("ppo", "λ = 0", {"trace_decay": 0.0}),
    ("ppo", "4 epochs, clipped at 0.2", {"update_epochs": 4}),
    ("ppo", "4 epochs, not clipped", {"update_epochs": 4, "clip_range": 1e6}),
    ("rloo", "ψ whitened", {"whiten_advantages": True}),
    ("grpo", "not divided", {"divide_by_deviation": False}),
    ("grpo", "KL in the reward", {"kl_placement": "reward"}),
    ("grpo", "not divided, KL in the reward", {"divide_by_deviation": False, "kl_placement": "reward"}),
)
"""What is changed in whose settings, and how it is called."""
FEWER_SEEDS = 3
"""At most so many runs of each kind, but for the methods with the reward known: what was learned differs by far more than runs do."""
LEARNED_EFFORT = 0.5
"""Share of an online method's iterations where the reward was learned: the reward's error is far larger than what they leave."""
MANY_RUNS_ON = ("table",)
"""Tasks on which changes and curves over N are shown: a run there takes seconds."""
COUNTS = (100, 300, 1_000, 3_000, 10_000, 30_000)
"""N of the curve, and its β."""
CURVE_BETA = 1.0
FEW, SMALL_BETA, MEASURES = 300, 0.02, 40
"""Preferences of the reward model that is over-optimised, β there, and how often the policy is measured."""
ENOUGH, RESTRICTED_BETA = 10_000, 0.5
"""Preferences where some answers are left out, so that little else is missing, and β there."""
FAILURES = ("changes", "counts", "restricted", "optimised")
"""Parts of a report besides the methods as they are."""
FRONTIER = np.geomspace(0.02, 50, 70).tolist()
"""β of the frontier's points."""


@dataclass(frozen=True)
class Plan:
    """What will be run."""

    tasks: tuple[str, ...]
    betas: tuple[float, ...]
    parts: dict[str, list[Run]]
    """By the report's keys."""
    reward_models: dict[Any, Run]
    """By :func:`_key`."""

    @property
    def total(self) -> int:
        """How many runs, reward models included."""
        return len(self.reward_models) + sum(map(len, self.parts.values()))


def plan_frontier(
    *, tasks: Sequence[str], methods: Sequence[str], betas: Sequence[float], seeds: int, preferences: int | None, failures: bool,
    effort: float = 1.0,
) -> Plan:  # fmt: skip
    """Everything that a report needs.

    Args:
        tasks: names of :data:`~surefoot.alignment.exact.models.TASKS`.
        methods: names of :data:`~surefoot.alignment.exact.runs.METHODS`.
        betas: β of every method, each > 0.
        seeds: how many runs of each kind.
        preferences: N, from which rewards are learned; None for known rewards alone.
        failures: whether to show, besides, what details cost, curves over N, and where methods fail.
        effort: share of the updates that are otherwise made.

    Raises:
        UsageError: a name is unknown, or a number out of range.
    """
    for name in tasks:
        require(name in TASKS, f"there is no task {name!r}; there are {', '.join(TASKS)}")
    for name in methods:
        require(name in METHODS, f"there is no method {name!r}; there are {', '.join(METHODS)}")
    for beta in betas:
        require(0 < beta < math.inf, f"--betas must be positive and finite, but one is {beta}")
    for name, given in (("tasks", tasks), ("methods", methods), ("betas", betas)):
        require(len(given) > 0, f"--{name} is empty; give at least one")
        require(len(set(given)) == len(given), f"--{name} names something twice")
    require(seeds >= 1, f"--seeds must be at least 1, but is {seeds}")
    require(preferences is None or preferences >= 10, f"--preferences must be at least 10, but is {preferences}")
    parts = {
        "rows": [
            Run(task, method, beta, seed, preferences=count, effort=effort * (1.0 if count is None else _share(method)))
            for count in ((None,) if preferences is None else (None, preferences))
            for seed in range(seeds if count is None else min(seeds, FEWER_SEEDS))
            for task in tasks
            for beta in betas
            for method in methods
        ]
    }
    if failures:
        parts |= _failures(tasks, methods, betas, min(seeds, FEWER_SEEDS))
    online = {_key(run): replace(run, method="rloo") for runs in parts.values() for run in runs if run.method in ONLINE}
    online |= {_key(run): replace(run, method="rloo") for run in parts.get("counts", []) if run.preferences is not None}
    models = {key: run for key, run in online.items() if run.preferences is not None}
    return Plan(tuple(tasks), tuple(betas), parts, models)


def _failures(tasks: Sequence[str], methods: Sequence[str], betas: Sequence[float], seeds: int) -> dict[str, list[Run]]:
    """What is run besides the methods as they are."""
    some, chosen = [task for task in tasks if task in MANY_RUNS_ON], set(methods)
    return {
        "changes": [
            Run(task, method, beta, seed, change=change, settings=settings)
            for task in some
            for method, change, settings in CHANGES
            if method in chosen
            for beta in sorted({min(betas), max(betas)})
            for seed in range(seeds)
        ],
        "counts": [
            Run(task, method, CURVE_BETA, seed, preferences=count)
            for task in some
            for method in methods
            if method not in ONLINE
            for count in COUNTS
            for seed in range(seeds)
        ],
        "restricted": [
            Run(task, method, RESTRICTED_BETA, seed, preferences=ENOUGH, restricted=True, effort=_share(method))
            for task in tasks
            for method in ("ppo", "dpo")
            if method in chosen
            for seed in range(seeds)
        ],
        "optimised": [
            Run(task, method, SMALL_BETA, seed, preferences=FEW, effort=_share(method), measures=MEASURES)
            for task in tasks
            for method in ("rloo",)
            if method in chosen
            for seed in range(seeds)
        ],
    }


def _share(method: str) -> float:
    return LEARNED_EFFORT if method in ONLINE else 1.0


def _key(run: Run) -> Any:
    """What a reward model depends on."""
    return run.task, run.preferences, run.restricted, run.seed


def frontier_report(plan: Plan, *, processes: int, tell: Callable[[int, str], None]) -> dict[str, Any]:
    """Run it all, and put it together.

    Args:
        plan: what.
        processes: how many runs at once, each in a process of its own, of one thread.
        tell: told how many runs are done, and what the last was.

    Returns:
        what ``--json`` prints. ``rows``: one entry per task, method, β, seed and ``rewards`` known or learned, as
        :func:`~surefoot.alignment.exact.runs.carry_out` makes them. ``tasks``: points of the frontier, and what is known of π* for each β.
        ``changes``, ``counts``, ``restricted`` and ``optimised``: rows of the same kind. ``reward_models``: where the optimum of each
        learned reward lies.

    Raises:
        UsageError: processes is below 1.
        RunError: a run failed.
    """
    require(processes >= 1, f"--processes must be at least 1, but is {processes}")
    done = 0

    def results(work: dict[Any, Call], described: Callable[[Any], str]) -> dict[Any, Any]:
        nonlocal done
        ready = {}
        for name, result in each_in_its_own_process(work, processes=processes, preload=(carry_out.__module__,)):
            ready[name] = result
            done += 1
            tell(done, described(name))
        return ready

    models: dict[Any, RewardModel] = results(
        {key: (train_reward_model, (run,)) for key, run in plan.reward_models.items()},
        lambda key: f"reward model of {plan.reward_models[key].preferences:,} preferences, {key[0]}",
    )
    runs = {(part, i): run for part, runs in plan.parts.items() for i, run in enumerate(runs)}
    rows = results(
        {name: (carry_out, (run, models.get(_key(run)) if run.method in ONLINE else None)) for name, run in runs.items()},
        lambda name: _described(runs[name]),
    )
    languages = {name: make_task(name)[0] for name in plan.tasks}
    return {
        "betas": list(plan.betas),
        "tasks": {name: _exact(language, plan.betas) for name, language in languages.items()},
        **{part: [rows[part, i] for i in range(len(runs))] for part, runs in plan.parts.items()},
        "reward_models": [
            _optimum_of(languages[key[0]].task, models[key], run=run, beta=beta)
            for key, run in plan.reward_models.items()
            for beta in sorted({*plan.betas, CURVE_BETA})
        ],
    }


def _described(run: Run) -> str:
    rewards = "reward known" if run.preferences is None else f"{run.preferences:,} preferences"
    return f"{run.method} on {run.task}, β = {run.beta:g}, {rewards}"


def _exact(language: LanguageTask, betas: Sequence[float]) -> dict[str, Any]:
    """What is known of a task before anything is run."""
    task, unseen, optima = language.task, unseen_answers(language), []
    reference = task.reference_log_probabilities
    for beta in sorted({*betas, CURVE_BETA, RESTRICTED_BETA}):
        optimum = optimal_policy(task, beta=beta).log_probabilities
        measured = measure_policy(task, optimum, beta=beta)
        optima.append(
            {
                "beta": beta,
                "reward": measured.reward,
                "kl_reference": measured.kl_to_reference,
                "start": mean_kl_divergence(reference, optimum),
                "unseen": float(np.exp(optimum)[:, unseen].sum(axis=-1).mean()),
            }
        )
    points = [{"beta": p.beta, "reward": p.reward, "kl_reference": p.kl_to_reference} for p in frontier(task, FRONTIER)]
    return {"optima": optima, "frontier": points, "unseen": float(np.exp(reference)[:, unseen].sum(axis=-1).mean())}


def _optimum_of(task: PreferenceTask, model: RewardModel, *, run: Run, beta: float) -> dict[str, Any]:
    """Where the best policy by a learned reward lies: what an online method that does nothing wrong comes to."""
    learned = PreferenceTask(task.reference_log_probabilities, model.scores)
    measured = measure_policy(task, optimal_policy(learned, beta=beta).log_probabilities, beta=beta)
    return {
        "task": run.task,
        "preferences": run.preferences,
        "restricted": run.restricted,
        "seed": run.seed,
        "beta": beta,
        "reward": measured.reward,
        "kl_reference": measured.kl_to_reference,
        "kl_optimum": measured.kl_to_optimum,
        "seconds": round(model.seconds, 3),
    }
