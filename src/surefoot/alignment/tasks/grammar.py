"""A language of judgements, in which negation, intensity and reference decide the reward.

A prompt names two things and asks about one of them; an answer judges both, in either order:

    the soup and the waiter . what about the latter ?
    the former was not very good but it was extremely kind

The reward is the judgement of what was asked about. Its sign is the adjective's, turned round by ``not``; its size is the adverb's,
halved by ``not``; and whose judgement counts is told by ``it``, ``the other one``, ``the former`` and ``the latter``. The other
clause is drawn from the same words, mostly with the opposite judgement, so which words an answer has tells little about its reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

THINGS = ("soup", "waiter", "bread", "wine", "room", "music", "view", "price")
POSITIVE = ("good", "kind", "lovely", "great")
NEGATIVE = ("bad", "rude", "awful", "poor")
ADVERBS = {"somewhat": 1.0, "very": 2.0, "extremely": 3.0}
PLACES = ("former", "latter")
OTHER_WORDS = ("the", "and", ".", "what", "about", "?", "it", "other", "one", "was", "but", "not")
WORDS = tuple(sorted({*THINGS, *POSITIVE, *NEGATIVE, *ADVERBS, *PLACES, *OTHER_WORDS}))

NEGATED, OPPOSED, PRONOUN = 0.4, 0.7, 0.3
"""How often a clause is negated, the two clauses judge oppositely, and a thing is not called by its place."""
UNIT = 0.55
"""Reward of «somewhat good», which makes the standard deviation of the generator's answers about 1."""
UNGRAMMATICAL = -3.0
"""Reward of what is no sentence of this language: below every sentence's."""


@dataclass(frozen=True)
class Clause:
    """One judgement."""

    asked: bool
    """Of the thing that the prompt asks about."""
    negated: bool
    adverb: str
    adjective: str

    @property
    def value(self) -> float:
        """± the adverb's size, turned round and halved by ``not``, in reward units."""
        sign = 1.0 if self.adjective in POSITIVE else -1.0
        return UNIT * sign * ADVERBS[self.adverb] * (-0.5 if self.negated else 1.0)


def prompt_of(first: str, second: str, asked: str) -> str:
    """The question about the ``former`` or the ``latter`` of two things."""
    return f"the {first} and the {second} . what about the {asked} ?"


def asked_about(prompt: str) -> str | None:
    """``former`` or ``latter``; None where the prompt is no question of this language."""
    words = prompt.split()
    if len(words) == 11 and words == prompt_of(words[1], words[4], words[9]).split():
        first, second, asked = words[1], words[4], words[9]
        if first in THINGS and second in THINGS and first != second and asked in PLACES:
            return asked
    return None


def parse(prompt: str, answer: str) -> tuple[Clause, Clause] | None:
    """The answer's two clauses in their order, or None where it is no sentence that judges both things."""
    asked, halves = asked_about(prompt), answer.split(" but ")
    if asked is None or len(halves) != 2:
        return None
    clauses = tuple(clause for half in halves if (clause := _parse_clause(half.split(), asked)) is not None)
    if len(clauses) != 2 or clauses[0].asked == clauses[1].asked:
        return None
    return clauses[0], clauses[1]


def _parse_clause(words: list[str], asked: str) -> Clause | None:
    if "was" not in words:
        return None
    at = words.index("was")
    subject, rest = " ".join(words[:at]), words[at + 1 :]
    meant = {"it": True, "the other one": False} | {f"the {place}": place == asked for place in PLACES}
    negated = rest[:1] == ["not"]
    rest = rest[negated:]
    if subject not in meant or len(rest) != 2 or rest[0] not in ADVERBS or rest[1] not in POSITIVE + NEGATIVE:
        return None
    return Clause(meant[subject], negated, rest[0], rest[1])


def reward(prompt: str, answer: str) -> float:
    """The judgement of what was asked about, from −3 · 0.55 to 3 · 0.55; :data:`UNGRAMMATICAL` for any other text."""
    clauses = parse(prompt, answer)
    return UNGRAMMATICAL if clauses is None else next(clause.value for clause in clauses if clause.asked)


def reward_function(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """:func:`reward` of a batch."""
    return [reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def sample_prompt(generator: np.random.Generator) -> str:
    """A question about one of two things."""
    first, second = generator.choice(len(THINGS), 2, replace=False)
    return prompt_of(THINGS[first], THINGS[second], PLACES[generator.integers(2)])


def sample_answer(prompt: str, generator: np.random.Generator) -> str:
    """An answer as the language's writer gives it, good or bad as chance has it."""
    asked = PLACES.index(prompt.split()[9])
    sign = 1 if generator.random() < 0.5 else -1
    other = -sign if generator.random() < OPPOSED else sign
    own = _clause("it", PLACES[asked], sign, generator)
    rest = _clause("the other one", PLACES[1 - asked], other, generator)
    clauses = (own, rest) if generator.random() < 0.5 else (rest, own)
    return " but ".join(clauses)


def _clause(pronoun: str, place: str, sign: int, generator: np.random.Generator) -> str:
    subject = pronoun if generator.random() < PRONOUN else f"the {place}"
    negated = generator.random() < NEGATED
    adjectives = POSITIVE if (sign > 0) != negated else NEGATIVE
    adverb, adjective = generator.choice(list(ADVERBS)), generator.choice(adjectives)
    return f"{subject} was {'not ' if negated else ''}{adverb} {adjective}"


def sample_ranking(rewards: Sequence[float], *, temperature: float, generator: np.random.Generator) -> list[int]:
    """Answers best first, as a labeller of the Plackett–Luce model ranks them; of two answers, Bradley–Terry's.

    Sorting r/T + Gumbel noise draws a ranking with probability Πₖ exp(rₖ/T) / Σ_{j≥k} exp(rⱼ/T).

    Args:
        rewards: of the answers.
        temperature: T; 0 ranks by the rewards.
        generator: of the noise.

    Source: Yellott, The relationship between Luce's choice axiom, Thurstone's theory of comparative judgment, and the double
        exponential distribution (1977).
    """
    noise = generator.gumbel(size=len(rewards))
    return [int(i) for i in np.argsort(-(np.asarray(rewards) + temperature * noise), kind="stable")]


def supervised_rows(count: int, generator: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Prompts with an answer each, as the writer gives it."""
    for _ in range(count):
        prompt = sample_prompt(generator)
        yield {"prompt": prompt, "completion": " " + sample_answer(prompt, generator)}


def ranked_rows(count: int, generator: np.random.Generator, *, answers: int, temperature: float) -> Iterator[dict[str, Any]]:
    """Prompts with K different answers, ranked by a labeller; the true rewards are kept beside."""
    for _ in range(count):
        prompt, texts = _different_answers(answers, generator)
        rewards = [reward(prompt, text) for text in texts]
        ranks = [0] * answers
        for rank, answer in enumerate(sample_ranking(rewards, temperature=temperature, generator=generator), start=1):
            ranks[answer] = rank
        yield {"prompt": prompt, "completions": [" " + text for text in texts], "ranks": ranks, "true_rewards": rewards}


def pair_rows(count: int, generator: np.random.Generator, *, temperature: float) -> Iterator[dict[str, Any]]:
    """Prompts with two different answers, one chosen by a labeller; the true rewards are kept beside, the chosen one's first.

    At temperature 0 the labeller makes no mistake, and answers of equal reward are not asked about.
    """
    given = 0
    while given < count:
        prompt, texts = _different_answers(2, generator)
        rewards = [reward(prompt, text) for text in texts]
        if temperature == 0 and rewards[0] == rewards[1]:
            continue
        chosen, rejected = sample_ranking(rewards, temperature=temperature, generator=generator)
        given += 1
        yield {
            "prompt": prompt,
            "chosen": " " + texts[chosen],
            "rejected": " " + texts[rejected],
            "true_rewards": [rewards[chosen], rewards[rejected]],
        }


def _different_answers(count: int, generator: np.random.Generator) -> tuple[str, list[str]]:
    prompt, texts = sample_prompt(generator), list[str]()
    while len(texts) < count:
        if (text := sample_answer(prompt, generator)) not in texts:
            texts.append(text)
    return prompt, texts
