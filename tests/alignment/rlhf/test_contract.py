"""Two engines, one PPO: answers of one token are a bandit, and control's update moves the same parameters to the same place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from surefoot.alignment.learning.optimization import descend
from surefoot.alignment.likelihood.distribution import PLAIN
from surefoot.alignment.likelihood.likelihood import CompletionLogProbabilities, Likelihood, Work
from surefoot.alignment.models.adapters import trainable_parameters
from surefoot.alignment.preparation import live_reference
from surefoot.alignment.rlhf import learner as learning
from surefoot.alignment.rlhf.critic import Critic
from surefoot.alignment.rlhf.experience import Answered, Experience
from surefoot.alignment.rlhf.learner import PolicyOptimization
from surefoot.alignment.rlhf.objective import accumulate_gradients
from surefoot.alignment.rlhf.weighing import TokenRewards, weigh
from surefoot.control.policies.spaces import ActionSpace, Spaces
from surefoot.control.rollout import Rollout
from surefoot.control.update.descent import improve_actor, improve_critic
from surefoot.control.update.state import Network, Samples, initialize, schedule_at
from surefoot.control.update.whole import whole_update
from tests.alignment.rlhf.experiences import plain_training, prompt, settings
from tests.control.helpers import configure

torch.set_num_threads(1)
STATES, ACTIONS, EACH = 4, 6, 5
SAMPLES = STATES * EACH
CLIP, BONUS, RATE, CRITIC_RATE = 0.125, 0.0625, 4.0, 0.5
"""Numbers that float32, in which control's schedule holds them, has exactly."""


def control(**options):
    """Control's PPO without what has no counterpart, on a bandit with a state per prompt and an action per token."""
    chosen = {
        "num_envs": SAMPLES,
        "rollout_length": 1,
        "total_steps": 100 * SAMPLES,
        "minibatch_size": SAMPLES,
        "hidden_sizes": (),
        "normalize_observations": False,
        "normalize_rewards": False,
        "advantage_normalization": "none",
        "optimizer": "sgd",
        "learning_rate": RATE,
        "critic_learning_rate": CRITIC_RATE,
        "learning_rate_schedule": "constant",
        "max_gradient_norm": None,
        "clip_range": CLIP,
        "entropy_coefficient": BONUS,
    }
    return configure("ppo", **(chosen | options)), Spaces(STATES, ActionSpace("discrete", (ACTIONS,), start=(0,)))


def layers(rng, dtype):
    """An actor's and a critic's single layer: (weight [out, in], bias [out]) each."""

    def draw(out):
        return rng.normal(size=(out, STATES)).astype(dtype), rng.normal(size=out).astype(dtype)

    return draw(ACTIONS), draw(1)


def as_network(weight, bias):
    return {"layer_0/weight": jnp.asarray(weight.T), "layer_0/bias": jnp.asarray(bias)}


def as_linear(weight, bias):
    linear = torch.nn.Linear(*weight.shape[::-1], dtype=torch.from_numpy(weight).dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    return linear


def differences(linear, parameters):
    pairs = (
        (linear.weight.detach().numpy().T, parameters["layer_0/weight"]),
        (linear.bias.detach().numpy(), parameters["layer_0/bias"]),
    )
    return max(float(np.abs(mine - np.asarray(theirs)).max()) for mine, theirs in pairs)


@dataclass
class Table:
    """As much of a likelihood as the update needs, in float64: a prompt is a state, an answer one action."""

    model: torch.nn.Linear

    def __post_init__(self):
        self.work = Work()

    @staticmethod
    def _flat(groups):
        states = torch.tensor([int(state[0]) for state, answers in groups for _ in answers])
        return torch.nn.functional.one_hot(states, STATES).double(), [a for _, answers in groups for a in answers]

    def completions(self, groups, *, under=PLAIN, entropies=False, value_head=None):
        states, answers = self._flat(groups)
        logs = self.model(states).log_softmax(-1)
        actions = torch.tensor([int(answer[0]) for answer in answers])
        count = len(answers)
        return CompletionLogProbabilities(
            tokens=logs[torch.arange(count), actions],
            completion_of=torch.arange(count),
            step_of=torch.zeros(count, dtype=torch.int64),
            count=count,
            entropies=-(logs.exp() * logs).sum(-1) if entropies else None,
            values=None if value_head is None else value_head(states)[:, 0],
        )

    def values(self, groups):
        return self.model(self._flat(groups)[0])[:, 0]


def recorded(rng):
    """States, actions, rewards and what the policy that acted thought of them."""
    return {
        "states": np.repeat(np.arange(STATES), EACH),
        "actions": rng.integers(0, ACTIONS, SAMPLES).astype(np.int32),
        "rewards": rng.normal(size=SAMPLES),
        "log_probabilities": np.log(rng.uniform(0.05, 0.4, SAMPLES)),
        "values": rng.normal(size=SAMPLES),
    }


@pytest.mark.parametrize(("critic", "value_clip_range"), [("own", None), ("shared", 0.25)])
def test_one_recorded_batch_moves_both_engines_parameters_alike(critic, value_clip_range):
    rng, steps = np.random.default_rng(0), 5
    of_actor, of_critic = layers(rng, np.float64)
    batch = recorded(rng)
    # Alignment: the record as an experience, ψ by the engine itself, several steps on it.
    chosen = settings(
        answers_per_prompt=EACH,
        clip_range=CLIP,
        entropy_coefficient=BONUS,
        value_clip_range=value_clip_range,
        value_coefficient=CRITIC_RATE / RATE,  # one optimiser, and the critic's share of its step
    )
    groups = [
        Answered(prompt(i + 1, [i]), tuple(batch["actions"][i * EACH : (i + 1) * EACH, None]), i * EACH) for i in range(STATES)
    ]
    old = torch.from_numpy(batch["log_probabilities"])[None]
    answered = Experience(groups, np.ones(SAMPLES, bool), batch["rewards"], old, old, torch.from_numpy(batch["values"])[None])
    earned = torch.from_numpy(batch["rewards"])[None]
    weighed = weigh(answered, TokenRewards(earned, torch.zeros_like(earned)), chosen)
    actor, value = as_linear(*of_actor), as_linear(*of_critic)
    own = critic == "own"
    learned = Critic(Table(value)) if own else Critic(head=value)
    parts = [actor.named_parameters(), value.named_parameters()]
    optimizers = [[torch.optim.SGD([p for _, p in named], lr=1.0), named] for named in map(list, parts)]
    outside = []
    for _ in range(steps):
        share = accumulate_gradients(
            groups,
            tokens=SAMPLES,
            experience=answered,
            weighed=weighed,
            beta=0.3,
            actor=Table(actor),
            critic=learned,
            under=PLAIN,
            settings=chosen,
        )
        outside.append(float(share.sums["clip_fraction"][0]) / SAMPLES)
        for (optimizer, named), rate in zip(optimizers, (RATE, CRITIC_RATE if own else RATE), strict=True):
            descend(optimizer, named, learning_rate=rate, max_gradient_norm=None)
    # Control: the same record as samples.
    configuration, spaces = control(value_clip_range=value_clip_range)
    with jax.enable_x64(True):
        fresh, schedule = initialize(configuration, spaces, 0), schedule_at(configuration, 0)
        samples = Samples(
            observations=jnp.eye(STATES)[batch["states"]],
            actions=jnp.asarray(batch["actions"]),
            acting=None,
            log_probabilities=jnp.asarray(batch["log_probabilities"]),
            weights=jnp.asarray(batch["rewards"] - batch["values"]),
            targets=jnp.asarray(batch["rewards"]),
            values=jnp.asarray(batch["values"]),
            valid=jnp.ones(SAMPLES, bool),
        )
        order = jnp.tile(jnp.arange(SAMPLES), (steps, 1))
        policy = Network(as_network(*of_actor), fresh.actor.optimizer)
        policy, _, metrics = jax.jit(partial(improve_actor, configuration, spaces))(
            policy, jnp.asarray(False), samples, order, schedule
        )
        judge = Network({"v": as_network(*of_critic)}, fresh.critic.optimizer)
        judge, _ = jax.jit(partial(improve_critic, configuration, spaces))(judge, samples, order, schedule)
    assert differences(actor, policy.parameters) < 1e-12
    assert differences(value, judge.parameters["v"]) < 1e-12
    assert differences(actor, as_network(*of_actor)) > 0.1
    assert float(metrics["policy/clip_fraction"]) == pytest.approx(sum(outside), abs=1e-6)
    assert 0 < outside[0] < outside[-1] < 1


def bandit(weight, bias):
    """A language model, and a critic, whose hidden state behind a prompt of one token is that token's own unit vector."""
    config = transformers.LlamaConfig(
        vocab_size=ACTIONS,
        hidden_size=STATES,
        intermediate_size=4,
        num_hidden_layers=0,
        num_attention_heads=1,
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
        num_labels=1,
    )
    causal = len(bias) == ACTIONS
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    model = kind.from_config(config)
    model.requires_grad_(False)
    with torch.no_grad():
        model.model.embed_tokens.weight[:STATES] = 1000 * torch.eye(STATES)
        model.model.norm.weight.fill_(STATES**-0.5)
    setattr(model, "lm_head" if causal else "score", as_linear(weight, bias))
    return model


@dataclass
class Payoffs:
    table: np.ndarray
    name: str = "a table"

    def rewards(self, prompts, answers, finished):
        return np.array(
            [self.table[int(p.ids[0]), int(answer[0])] for p, given in zip(prompts, answers, strict=True) for answer in given]
        )


@cache
def compiled(epochs):
    configuration, spaces = control(epochs=epochs)
    return jax.jit(partial(whole_update, configuration, spaces))


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_whole_iterations_on_a_bandit_are_controls(critic, monkeypatch):
    """In float32, the precision in which a likelihood keeps log-probabilities; sampled by the one engine, learnt by both."""

    def plain_descent(parameters, training):
        return torch.optim.SGD([p for _, p in parameters], lr=1.0)

    monkeypatch.setattr(learning, "make_optimizer", plain_descent)
    rng, iterations, epochs = np.random.default_rng(1), 3, 4
    of_actor, of_critic = layers(rng, np.float32)
    payoffs = Payoffs(rng.normal(size=(STATES, ACTIONS)).round(3))
    policy = bandit(*of_actor)
    actor = Likelihood(policy)
    own = critic == "own"
    judge = bandit(*of_critic) if own else as_linear(*of_critic)
    mine = PolicyOptimization(
        actor=actor,
        reward=payoffs,
        reference=live_reference(actor),
        critic=Critic(Likelihood(judge)) if own else Critic(head=judge),
        settings=settings(
            answers_per_prompt=EACH,
            longest_answer=1,
            beta=0.0,
            clip_range=CLIP,
            entropy_coefficient=BONUS,
            update_epochs=epochs,
            critic_learning_rate=CRITIC_RATE if own else None,
            value_coefficient=CRITIC_RATE / RATE,
        ),
        training=plain_training(learning_rate=RATE, max_gradient_norm=None),
        total=iterations,
    )
    assert [name for name, _ in trainable_parameters(policy)] == ["lm_head.weight", "lm_head.bias"]
    configuration, spaces = control(epochs=epochs)
    theirs = initialize(configuration, spaces, 0)
    theirs = theirs._replace(
        actor=Network(as_network(*of_actor), theirs.actor.optimizer),
        critic=Network({"v": as_network(*of_critic)}, theirs.critic.optimizer),
    )
    update = compiled(epochs)
    for i in range(iterations):
        metrics = mine.iterate([prompt(state + 1, [state]) for state in range(STATES)])
        experience = mine.last
        actions = np.array([int(answer[0]) for one in experience.batch for answer in one.answers], np.int32)
        ends = np.ones((1, SAMPLES), bool)
        rollout = Rollout(
            observations=np.eye(STATES, dtype=np.float32)[np.repeat(np.arange(STATES), EACH)][None].repeat(2, axis=0),
            actions=actions[None],
            rewards=experience.rewards[None].astype(np.float32),
            terminated=ends,
            truncated=~ends,
            valid=ends,
        )
        theirs, said, _ = update(theirs, rollout, schedule_at(configuration, i))
        assert differences(policy.lm_head, theirs.actor.parameters) < 2e-5
        assert differences(judge.score if own else judge, theirs.critic.parameters["v"]) < 2e-5
        for name, other in (("clip_fraction", "policy/clip_fraction"), ("kl/update", "policy/approximate_kl")):
            assert metrics[name] == pytest.approx(float(said[other]), abs=1e-5)
        assert metrics["critic/explained_variance"] == pytest.approx(float(said["critic/explained_variance"]), abs=1e-4)
    assert metrics["clip_fraction"] > 0
    actor.release()
