"""PPO's loss on tokens and its gradient, against plain forwards of one answer at a time and formulas written out in loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from surefoot.alignment.likelihood.distribution import PLAIN, AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.methods.method import add_sums
from surefoot.alignment.rlhf.critic import Critic
from surefoot.alignment.rlhf.experience import Answered, Experience
from surefoot.alignment.rlhf.objective import accumulate_gradients
from surefoot.alignment.rlhf.weighing import Weighed
from tests.alignment.models.tiny import language_model, reward_model
from tests.alignment.rlhf.experiences import EOS, columns, moved, settings, some_answers, some_prompts

torch.set_num_threads(1)
LENGTHS = (4, 2, 3, 1, 5, 2)
BETA = 0.4
SHARP = AnswerDistribution(temperature=0.7, shortest=3, ends=(EOS, 5))


def plain_tokens(model, prompt, answer, under):
    """Log-probabilities of an answer's tokens and the entropies where they were drawn, by the model itself."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = model(ids).logits[0, len(prompt) - 1 : -1] / under.temperature
    excluded = torch.zeros_like(logits, dtype=torch.bool)
    excluded[:, list(under.never)] = True
    for t in range(min(under.shortest - 1, len(answer))):
        excluded[t, list(under.ends)] = True
    logs = logits.masked_fill(excluded, -1e9).log_softmax(-1)
    chosen = torch.stack([logs[t, int(token)] for t, token in enumerate(answer)])
    return chosen, -(logs.exp() * logs).sum(-1)


def plain_values(trunk, head, prompt, answer):
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    return head(trunk(ids).last_hidden_state)[0, len(prompt) - 1 : -1, 0]


class Case:
    """A policy, a critic or none, and experience of an older policy; ``mine`` and ``theirs`` are the two ways to the gradients."""

    def __init__(self, critic=None, under=PLAIN, **choices):
        def noise(seed, size, shape):
            return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))

        self.under, self.settings = under, settings(**choices)
        self.policy = moved(language_model()).eval()
        self.critic_model = moved(reward_model()).eval() if critic == "own" else None
        self.head = torch.nn.Linear(16, 1) if critic == "shared" else None
        if self.head is not None:
            with torch.no_grad():
                self.head.weight.copy_(noise(1, 1.0, (1, 16)))
        answers = some_answers(LENGTHS)
        for n in (0, 2, 4):
            answers[n][-1] = EOS
        answers[5][0] = 5 if under is PLAIN else 6
        self.batch = [Answered(p, answers[2 * i : 2 * i + 2], 2 * i) for i, p in enumerate(some_prompts())]
        with torch.no_grad():
            new = [self.plain(one, answer)[0] for one, answer in self.answers()]
            old = columns([(x + noise(10 + n, 0.3, len(x))).tolist() for n, x in enumerate(new)]).float()
            reference = columns([(x + noise(20 + n, 0.5, len(x))).tolist() for n, x in enumerate(new)]).float()
            values = None
            if critic is not None:
                now = [self.plain(one, answer)[2] for one, answer in self.answers()]
                values = columns([(v + noise(30 + n, 0.3, len(v))).tolist() for n, v in enumerate(now)]).float()
        finished = np.array([answer[-1] == EOS for _, answer in self.answers()])
        self.experience = Experience(self.batch, finished, np.zeros(6), old, reference, values)
        targets = None if values is None else values + noise(2, 1.0, values.shape)
        self.weighed = Weighed(noise(3, 1.0, old.shape), targets, torch.zeros(6))
        self.tokens = sum(LENGTHS)

    def answers(self):
        return [(one, answer) for one in self.batch for answer in one.answers]

    def plain(self, one, answer):
        logs, entropies = plain_tokens(self.policy, one.prompt.ids, answer, self.under)
        values = None
        if self.critic_model is not None:
            values = plain_values(self.critic_model.model, self.critic_model.score, one.prompt.ids, answer)
        elif self.head is not None:
            values = plain_values(self.policy.model, self.head, one.prompt.ids, answer)
        return logs, entropies, values

    def parameters(self):
        modules = {"policy": self.policy, "critic": self.critic_model, "head": self.head}
        return {f"{k} {n}": p for k, m in modules.items() if m is not None for n, p in m.named_parameters()}

    def taken(self):
        """The gradients that are there, and none left behind."""
        gradients = {name: p.grad.clone() for name, p in self.parameters().items() if p.grad is not None}
        for p in self.parameters().values():
            p.grad = None
        return gradients

    def mine(self, sizes=(3,)):
        actor, critic = Likelihood(self.policy), None
        if self.critic_model is not None:
            critic = Critic(Likelihood(self.critic_model))
        elif self.head is not None:
            critic = Critic(head=self.head)
        edges = np.cumsum([0, *sizes])
        shares = [
            accumulate_gradients(
                self.batch[a:b],
                tokens=self.tokens,
                experience=self.experience,
                weighed=self.weighed,
                beta=BETA,
                actor=actor,
                critic=critic,
                under=self.under,
                settings=self.settings,
            )
            for a, b in pairwise(edges)
        ]
        actor.release()
        if critic is not None and critic.likelihood is not None:
            critic.likelihood.release()
        sums = {}
        for share in shares:
            add_sums(sums, share.sums)
        means = {name: (float(total) / count, count) for name, (total, count) in sums.items()}
        means["ratios"] = (min(s.lowest_ratio for s in shares), max(s.highest_ratio for s in shares))
        return self.taken(), means

    def theirs(self):
        """Token by token, as the papers print it."""
        choices, epsilon = self.settings, self.settings.clip_range
        policy_loss = value_loss = 0.0
        ratios, surrogates, divergences, value_terms = [], [], [], []
        for n, (one, answer) in enumerate(self.answers()):
            logs, entropies, values = self.plain(one, answer)
            moved_from_reference = 0.0
            for t in range(len(answer)):
                ratio = (logs[t] - self.experience.log_probabilities[t, n]).exp()
                weight = self.weighed.weights[t, n]
                edge = 1 + epsilon if weight > 0 else 1 - epsilon
                too_far = ratio > edge if weight > 0 else ratio < edge
                term = edge * weight if too_far else ratio * weight
                policy_loss = policy_loss - term
                ratios.append(float(ratio.detach()))
                surrogates.append(float(term.detach()))
                divergences.append(ratios[-1] - 1 - float(np.log(ratios[-1])))
                policy_loss = policy_loss - choices.entropy_coefficient * entropies[t]
                moved_from_reference = moved_from_reference + logs[t] - self.experience.reference[t, n]
                if values is not None:
                    target, old, limit = self.weighed.targets[t, n], self.experience.values[t, n], choices.value_clip_range
                    error = (values[t] - target) ** 2 / 2
                    if limit is not None:
                        held_value = old + torch.clamp(values[t] - old, -limit, limit)
                        error = torch.maximum(error, (held_value - target) ** 2 / 2)
                    value_loss = value_loss + error
                    value_terms.append(float(error.detach()))
            if choices.kl_placement == "loss":
                policy_loss = policy_loss + BETA * moved_from_reference**2 / 2
        share = 1.0 if self.head is None else choices.value_coefficient
        ((policy_loss + share * value_loss) / self.tokens).backward()
        outside = np.mean([abs(r - 1) > epsilon for r in ratios])
        means = {"loss/policy": -np.mean(surrogates), "clip_fraction": outside, "kl/update": np.mean(divergences)}
        if value_terms:
            means["loss/value"] = np.mean(value_terms)
        return self.taken(), {name: (m, self.tokens) for name, m in means.items()} | {"ratios": (min(ratios), max(ratios))}


CASES = [
    {"weight": "reward-to-go"},
    {"weight": "group", "clip_range": 0.05},
    {"weight": "leave-one-out", "entropy_coefficient": 0.3},
    {"weight": "leave-one-out", "kl_placement": "loss"},
    {"critic": "own"},
    {"critic": "own", "value_clip_range": 0.2},
    {"critic": "shared"},
    {"critic": "shared", "value_coefficient": 0.7, "value_clip_range": 0.2},
    {"under": SHARP, "critic": "own", "entropy_coefficient": 0.3, "kl_placement": "loss"},
    {"under": SHARP, "critic": "shared", "entropy_coefficient": 0.3, "kl_placement": "loss", "value_coefficient": 0.5},
]


def close(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("choices", CASES, ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items() if k != "under"))
def test_the_gradient_is_that_of_the_formula(choices):
    case = Case(**choices)
    mine, said = case.mine()
    theirs, expected = case.theirs()
    assert 0 < expected["clip_fraction"][0] < 1
    close(mine, theirs)
    assert said.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert said[name] == (pytest.approx(value, abs=1e-5), pytest.approx(count, abs=1e-5)), name


@pytest.mark.parametrize("choices", [CASES[3], CASES[5], CASES[9]])
@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (1, 1, 1)])
def test_parts_of_any_size_give_the_gradient_of_the_whole(choices, sizes):
    case = Case(**choices)
    (whole, of_whole), (cut, of_parts) = case.mine(), case.mine(sizes)
    close(cut, whole)
    for name, value in of_whole.items():
        assert of_parts[name] == pytest.approx(value, abs=1e-5)


def test_a_critic_with_weights_of_its_own_moves_no_policy_and_the_other_way_round():
    case = Case(critic="own")
    alone, _ = Case(weight="reward-to-go").mine()
    both, _ = case.mine()
    close({name: g for name, g in both.items() if name.startswith("policy")}, alone)
    case.weighed = case.weighed._replace(weights=torch.zeros_like(case.weighed.weights))
    quiet, _ = case.mine()
    assert not any(bool(g.any()) for name, g in quiet.items() if name.startswith("policy"))
    close({n: g for n, g in both.items() if n.startswith("critic")}, {n: g for n, g in quiet.items() if n.startswith("critic")})


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_what_stands_behind_an_answer_reaches_no_gradient(critic):
    case = Case(critic=critic, kl_placement="loss", entropy_coefficient=0.1, value_clip_range=0.2)
    clean, of_clean = case.mine()
    behind = ~case.experience.valid
    tables = (case.experience.log_probabilities, case.experience.reference, case.experience.values)
    for table in (*tables, case.weighed.weights, case.weighed.targets):
        table[behind] = torch.nan
    dirty, of_dirty = case.mine()
    assert all(torch.equal(clean[name], dirty[name]) for name in clean)
    assert of_clean == of_dirty
