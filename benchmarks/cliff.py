"""The cliff: what a step that is too long, or taken on a wrong critic's word, does to plain policy gradient, TRPO and PPO.

    python benchmarks/cliff.py            # about ten minutes on two cores
    python benchmarks/cliff.py --figure   # only draw docs/figures/cliff.png from the results

CartPole-v1 (pure JAX), ten seeds side by side in one program, eight environments, rollouts of 256 steps, the same networks
and the same ψ (GAE, λ = 0.95, standardised over the rollout) for all methods. Every method trains for 40 rollouts at its
usual step size. Then, for 10 rollouts, its step size is multiplied by 1 … 1000, with its own critic or with a random one
that does not learn. Then everything is as before, critic included, for 40 more rollouts, which come from the policy that the
disturbance left. Reported are the return at the end of the disturbance and at the end. Nothing is left out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from surefoot.control.algorithms import configuration_for
from surefoot.control.configuration import LikelihoodObjective, TrainConfiguration
from surefoot.control.environments.functional import functional_carry, functional_step, make_functional
from surefoot.control.episodes import EpisodeTracker
from surefoot.control.policies.spaces import describe_spaces
from surefoot.control.rollout import collect_compiled
from surefoot.control.update.state import Learner, Schedule, actor_of, initialize, schedule_at
from surefoot.control.update.whole import whole_update
from surefoot.runs.statistics import summarize_seeds

ENV, SEEDS, TRAINED, DISTURBED, AFTERWARDS = "CartPole-v1", 10, 40, 10, 40
FACTORS = [float(10 ** (k / 2)) for k in range(7)]
WRONG_CRITIC_GAIN = 10.0
HERE = Path(__file__).parent
RESULTS, FIGURE = HERE / "results" / "cliff.json", HERE.parent / "docs" / "figures" / "cliff.png"
SHARED = {"num_envs": 8, "rollout_length": 256, "total_steps": 2048, "discount": 0.99, "trace_decay": 0.95}


def methods() -> dict[str, tuple[TrainConfiguration, str, dict[str, float]]]:
    """Configuration, what is swept, and the usual values of what is."""
    ppo = configuration_for(
        "ppo", "CartPole", **SHARED, minibatch_size=256, epochs=10, learning_rate_schedule="constant",
        advantage_normalization="batch",
    )  # fmt: skip
    trpo = configuration_for("trpo", "CartPole", **SHARED, learning_rate_schedule="constant")
    plain = replace(
        ppo,
        algorithm="policy gradient",
        objective=LikelihoodObjective(),
        passes=None,
        optimizer=replace(ppo.optimizer, optimizer="sgd", learning_rate=0.5, critic_learning_rate=0.1, max_gradient_norm=None),
    )
    limited = replace(ppo, objective=replace(ppo.objective, target_kl=0.01))
    return {
        "policy gradient": (plain, "learning_rate", {"learning_rate": 0.5}),
        "PPO": (ppo, "learning_rate", {"learning_rate": 3e-4}),
        "PPO, target KL 0.01": (limited, "learning_rate", {"learning_rate": 3e-4}),
        "TRPO": (trpo, "max_kl", {"max_kl": 1e-3}),
    }


def program(configuration: TrainConfiguration) -> tuple[Any, Any, Callable[..., Any]]:
    """Learners and environments of all seeds, and one rollout with its update for all of them."""
    environment = make_functional(ENV)
    spaces = describe_spaces(environment.observation_space, environment.action_space, name=ENV)
    actor, run = actor_of(configuration, spaces), configuration.run
    learners = jax.tree.map(lambda *x: np.stack(x), *(initialize(configuration, spaces, seed) for seed in range(SEEDS)))
    keys = np.asarray([[1, seed] for seed in range(SEEDS)], np.uint32)
    carry = jax.vmap(lambda key: functional_carry(environment, num_envs=run.num_envs, key=key))(keys)
    step = functional_step(environment)

    def iterate(learner: Learner, carry: Any, schedule: Schedule) -> tuple[Any, ...]:
        parts = learner.actor.parameters, learner.observations, learner.key
        carry, rollout = collect_compiled(actor, step, carry, *parts, length=run.rollout_length)
        after, metrics, finite = whole_update(configuration, spaces, learner, rollout, schedule)
        ends = rollout.terminated | rollout.truncated
        return after, carry, (rollout.rewards, ends, rollout.valid, metrics.get("policy/entropy"), finite)

    return learners, carry, jax.jit(jax.vmap(iterate, in_axes=(0, 0, None)))


class Record:
    """Every seed's mean return per rollout, over the episodes that it finished; NaN where it finished none."""

    def __init__(self, envs: int) -> None:
        self.trackers = [EpisodeTracker(envs) for _ in range(SEEDS)]
        self.returns: list[list[float]] = []

    def take(self, rewards: np.ndarray, ends: np.ndarray, valid: np.ndarray) -> None:
        row = []
        for tracker, *arrays in zip(self.trackers, rewards, ends, valid, strict=True):
            reached = tracker.take(*arrays)["episode/return_mean"]
            row.append(float("nan") if reached is None else reached)
        self.returns.append(row)

    def last(self, count: int) -> list[float]:
        return [float(x) for x in np.nanmean(np.asarray(self.returns[-count:]), axis=0)]


def random_critic(configuration: TrainConfiguration, learners: Learner) -> Any:
    """Freshly drawn weights, the head's scaled up: confident, and wrong."""
    spaces_seed = [initialize(configuration, spaces_of(), 10_000 + seed).critic.parameters for seed in range(SEEDS)]
    drawn = jax.tree.map(lambda *x: np.stack(x), *spaces_seed)
    head = max(name for name in drawn["v"] if name.endswith("/weight"))
    drawn["v"][head] = WRONG_CRITIC_GAIN * drawn["v"][head]
    return learners.critic._replace(parameters=drawn)


def spaces_of() -> Any:
    environment = make_functional(ENV)
    return describe_spaces(environment.observation_space, environment.action_space, name=ENV)


def run_method(name: str) -> list[dict[str, Any]]:
    configuration, swept, usual = methods()[name]
    learners, carry, iterate = program(configuration)
    plan = schedule_at(configuration, 0)
    plan = plan._replace(**{k: np.float32(v) for k, v in usual.items()})
    record = Record(configuration.run.num_envs)

    def advance(learners: Any, carry: Any, plan: Schedule, count: int, record: Record) -> tuple[Any, Any]:
        for _ in range(count):
            learners, carry, outcome = iterate(learners, carry, plan)
            record.take(*(np.asarray(x) for x in outcome[:3]))
        return learners, carry

    trained, where = advance(learners, carry, plan, TRAINED, record)
    before = record.last(3)
    print(f"{name}: {np.mean(before):.0f} after training", file=sys.stderr, flush=True)
    rows = []
    for critic in ("its own", "random, frozen"):
        for factor in FACTORS:
            disturbed = plan._replace(**{swept: np.float32(usual[swept] * factor)})
            start = trained
            if critic != "its own":
                start = trained._replace(critic=random_critic(configuration, trained))
                disturbed = disturbed._replace(critic_learning_rate=np.float32(0))
            record = Record(configuration.run.num_envs)
            after, place = advance(start, where, disturbed, DISTURBED, record)
            during = record.last(2)
            after = after._replace(critic=trained.critic)
            record = Record(configuration.run.num_envs)
            after, _ = advance(after, place, plan, AFTERWARDS, record)
            rows.append(
                {
                    "method": name, "swept": swept, "value": usual[swept] * factor, "factor": factor, "critic": critic,
                    "before": before, "after_disturbance": during, "at_the_end": record.last(5),
                }
            )  # fmt: skip
            means = [np.mean(rows[-1][k]) for k in ("after_disturbance", "at_the_end")]
            print(f"{name} × {factor:.0f}, critic {critic}: {means[0]:.0f}, then {means[1]:.0f}", file=sys.stderr, flush=True)
    return rows


def draw(report: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["method"] for row in report["rows"]))
    colors = dict(zip(names, ("#444444", "#d8642c", "#e3a857", "#1f6fb4"), strict=False))
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True, layout="constrained")
    for column, critic in enumerate(("its own", "random, frozen")):
        for line, (key, title) in enumerate(
            (("after_disturbance", "at the end of 10 disturbed rollouts"), ("at_the_end", "40 usual rollouts later"))
        ):
            axis = axes[line][column]
            for i, name in enumerate(names):
                rows = [r for r in report["rows"] if r["method"] == name and r["critic"] == critic]
                factors = np.asarray([r["factor"] for r in rows]) * 10 ** (0.02 * (i - 1.5))
                summaries = [summarize_seeds(r[key]) for r in rows]
                middle = [s.interquartile_mean for s in summaries]
                spread = [[s.interquartile_mean - s.low for s in summaries], [s.high - s.interquartile_mean for s in summaries]]
                axis.errorbar(factors, middle, yerr=spread, color=colors[name], marker="o", markersize=4, capsize=2, label=name)
            axis.set_xscale("log")
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.set_title(f"critic {critic}: {title}", fontsize=10)
            if column == 0:
                axis.set_ylabel("return")
            if line == 1:
                axis.set_xlabel("step size during the disturbance, × the usual one")
    axes[0][0].legend(loc="best", fontsize=9)
    figure.suptitle("CartPole-v1: return after a disturbance (interquartile mean of 10 seeds, 95 % interval)", fontsize=11)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", action="store_true", help="only draw the figure from the results")
    parser.add_argument("--methods", nargs="*", help="only these, and print without writing")
    arguments = parser.parse_args()
    if not arguments.figure:
        rows = [row for name in arguments.methods or methods() for row in run_method(name)]
        if arguments.methods:
            return
        report = {"command": "python benchmarks/cliff.py", "date": time.strftime("%Y-%m-%d"), "seeds": SEEDS, "rows": rows}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    draw(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
