"""The reward is what the words say, no more and no less; and labels come as often as their model says."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from surefoot.alignment.tasks import grammar
from surefoot.alignment.tasks.grammar import parse, reward, reward_function, sample_answer, sample_prompt, sample_ranking

FORMER = "the soup and the waiter . what about the former ?"
LATTER = "the soup and the waiter . what about the latter ?"

JUDGEMENTS = [
    (f"{'not ' if negated else ''}{adverb} {adjective}", 0.55 * size * sign * (-0.5 if negated else 1))
    for negated in (False, True)
    for adverb, size in (("somewhat", 1), ("very", 2), ("extremely", 3))
    for adjectives, sign in (("good kind lovely great", 1), ("bad rude awful poor", -1))
    for adjective in adjectives.split()
]
LANGUAGE = {
    text: value
    for own, other in product(("it", "the latter"), ("the other one", "the former"))
    for (judgement, value), (rest, _) in product(JUDGEMENTS, JUDGEMENTS)
    for text in (f"{own} was {judgement} but {other} was {rest}", f"{other} was {rest} but {own} was {judgement}")
}
"""Every answer to LATTER, with its reward."""


@pytest.mark.parametrize(
    ("prompt", "answer", "value"),
    [
        (LATTER, "the former was not very good but it was extremely kind", 1.65),
        (FORMER, "the former was not very good but the latter was extremely kind", -0.55),
        (LATTER, "the former was not very good but the latter was extremely kind", 1.65),
        (FORMER, "it was somewhat good but the other one was extremely rude", 0.55),
        (FORMER, "the other one was extremely rude but it was somewhat good", 0.55),
        (FORMER, "it was very awful but the latter was very great", -1.1),
        (LATTER, "the other one was very great but the latter was somewhat poor", -0.55),
        (LATTER, "the latter was not extremely bad but the other one was somewhat poor", 0.825),
        (FORMER, "the former was extremely lovely but the other one was not somewhat bad", 1.65),
        (FORMER, "it was not somewhat lovely but the other one was not somewhat bad", -0.275),
        (FORMER, " it was not somewhat rude but the latter was not extremely bad", 0.275),
    ],
)
def test_a_reward_is_what_its_words_say(prompt, answer, value):
    assert reward(prompt, answer) == pytest.approx(value)


def test_the_whole_language_has_the_rewards_of_its_table():
    assert len(LANGUAGE) == 2 * 4 * 48**2
    rewards = reward_function([LATTER] * len(LANGUAGE), list(LANGUAGE))
    assert rewards == pytest.approx(list(LANGUAGE.values()))
    assert (min(rewards), max(rewards)) == (pytest.approx(-1.65), pytest.approx(1.65))


@pytest.mark.parametrize(("plain", "value"), JUDGEMENTS[: len(JUDGEMENTS) // 2])
def test_not_turns_a_judgement_round_and_halves_it(plain, value):
    said, denied = (reward(FORMER, f"it was {words} but the latter was very good") for words in (plain, f"not {plain}"))
    assert said == pytest.approx(value)
    assert denied == pytest.approx(-value / 2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the former was very good but the latter was very bad", "the latter was very good but the former was very bad"),
        ("the former was very good but the latter was very bad", "the former was very bad but the latter was very good"),
        ("it was very good but the other one was very bad", "it was very bad but the other one was very good"),
        ("it was not very good but the other one was very kind", "it was very good but the other one was not very kind"),
        ("it was somewhat bad but the latter was extremely bad", "it was extremely bad but the latter was somewhat bad"),
        ("it was very good but the latter was not very rude", "it was not very rude but the latter was very good"),
    ],
)
def test_the_same_words_in_another_order_have_another_reward(one, other):
    assert Counter(one.split()) == Counter(other.split())
    assert reward(FORMER, one) != reward(FORMER, other)


def test_the_same_answer_to_another_question_has_another_reward():
    answer = "the former was extremely good but the latter was not very lovely"
    assert reward(FORMER, answer) == pytest.approx(1.65)
    assert reward(LATTER, answer) == pytest.approx(-0.55)


def test_the_order_of_the_clauses_does_not_matter():
    for answer, value in islice(LANGUAGE.items(), 0, None, 37):
        assert reward(LATTER, " but ".join(reversed(answer.split(" but ")))) == pytest.approx(value)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "it was very good",
        "it was very good but it was very bad",
        "it was very good but the latter was very bad",
        "the former was very good but the other one was very bad",
        "the other one was very good but the former was very bad",
        "it was very good and the former was very bad",
        "it was very good but the former was very bad but it was very good",
        "it was very good but the former was very bad but it was",
        "it was good but the former was very bad",
        "it was not not very good but the former was very bad",
        "it was very not good but the former was very bad",
        "it was very very good but the former was very bad",
        "it was very good good but the former was very bad",
        "it very good but the former was very bad",
        "it was was very good but the former was very bad",
        "the soup was very bad but it was very good",
        "It was very good but the former was very bad",
        "it was very good but the former was very bad .",
        "it was very nice but the former was very bad",
        "it was very good\0 but the former was very bad",
    ],
)
def test_what_is_no_sentence_of_the_language_has_the_lowest_reward(answer):
    assert parse(LATTER, answer) is None
    assert reward(LATTER, answer) == -3


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "what about the latter ?",
        "the soup and the soup . what about the latter ?",
        "the soup and the good . what about the latter ?",
        "the good and the soup . what about the latter ?",
        "the soup and the waiter . what about the waiter ?",
        "the soup and the waiter . what about the latter",
        "the soup and the waiter . what about the latter ? ?",
        "the soup but the waiter . what about the latter ?",
    ],
)
def test_an_answer_to_no_question_of_the_language_has_the_lowest_reward(prompt):
    assert grammar.asked_about(prompt) is None
    assert reward(prompt, "it was very good but the other one was very bad") == -3


@given(st.text() | st.sampled_from([FORMER, LATTER]), st.text() | st.lists(st.sampled_from(grammar.WORDS)).map(" ".join))
def test_any_text_has_a_reward(prompt, answer):
    assert reward(prompt, answer) == -3 or parse(prompt, answer) is not None


@given(st.sampled_from(list(LANGUAGE)), st.data())
def test_a_sentence_with_one_change_is_judged_if_it_still_is_one(answer, data):
    words = answer.split()
    place = data.draw(st.integers(0, len(words) - 1))
    word = data.draw(st.sampled_from(grammar.WORDS))
    changed = " ".join(
        data.draw(
            st.sampled_from(
                [
                    words[:place] + words[place + 1 :],
                    [*words[:place], word, *words[place:]],
                    [*words[:place], word, *words[place + 1 :]],
                    words[:place] + words[place : place + 2][::-1] + words[place + 2 :],
                ]
            )
        )
    )
    assert reward(LATTER, changed) == pytest.approx(LANGUAGE.get(changed, -3))


@given(st.integers(0, 2**31))
def test_what_is_generated_can_be_parsed_and_written_again(seed):
    generator = np.random.default_rng(seed)
    prompt = sample_prompt(generator)
    answer = sample_answer(prompt, generator)
    words, asked = prompt.split(), grammar.asked_about(prompt)
    assert prompt == f"the {words[1]} and the {words[4]} . what about the {asked} ?"
    assert words[1] != words[4]
    assert asked in ("former", "latter")
    clauses = parse(prompt, answer)
    assert clauses is not None
    names = {True: ("it", f"the {asked}"), False: ("the other one", "the former" if asked == "latter" else "the latter")}
    for clause, half in zip(clauses, answer.split(" but "), strict=True):
        judgement = f"{'not ' * clause.negated}{clause.adverb} {clause.adjective}"
        assert half in [f"{name} was {judgement}" for name in names[clause.asked]]
    assert set((prompt + " " + answer).split()) <= set(grammar.WORDS)


def test_the_writer_chooses_as_often_as_the_language_says():
    generator = np.random.default_rng(0)
    rewards, first, asked, negated, opposed, pronouns, adverbs, adjectives = [], [], [], [], [], [], Counter(), Counter()
    for _ in range(6000):
        prompt = sample_prompt(generator)
        answer = sample_answer(prompt, generator)
        one, two = parse(prompt, answer)
        rewards.append(reward(prompt, answer))
        first.append(one.asked)
        asked.append(grammar.asked_about(prompt) == "former")
        negated += [one.negated, two.negated]
        opposed.append(one.value * two.value < 0)
        pronouns += [half.startswith(("it ", "the other one ")) for half in answer.split(" but ")]
        adverbs.update([one.adverb, two.adverb])
        adjectives.update([one.adjective, two.adjective])
    assert abs(np.mean(rewards)) < 0.04  # three standard errors
    assert np.std(rewards) == pytest.approx(math.sqrt(0.55**2 * (1 + 4 + 9) / 3 * (0.6 + 0.4 / 4)), abs=0.02)
    assert np.std(rewards) == pytest.approx(1, abs=0.03)
    for share, values in ((0.5, first), (0.5, asked), (0.4, negated), (0.7, opposed), (0.3, pronouns)):
        assert np.mean(values) == pytest.approx(share, abs=0.02)
    assert chisquare(list(adverbs.values())).pvalue > 0.001
    assert len(adjectives) == 8
    assert chisquare(list(adjectives.values())).pvalue > 0.001


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_two_answers_are_ranked_as_bradley_and_terry_say(temperature):
    generator, count = np.random.default_rng(1), 10_000
    first = sum(sample_ranking([0.3, 0.1], temperature=temperature, generator=generator) == [0, 1] for _ in range(count))
    probability = 1 / (1 + math.exp(-0.2 / temperature))
    assert chisquare([first, count - first], [count * probability, count * (1 - probability)]).pvalue > 0.01


def test_three_answers_are_ranked_as_plackett_and_luce_say():
    generator, count, rewards, temperature = np.random.default_rng(2), 20_000, [0.2, -0.1, 0.45], 0.5
    seen = Counter(tuple(sample_ranking(rewards, temperature=temperature, generator=generator)) for _ in range(count))
    worth = [math.exp(r / temperature) for r in rewards]
    expected = {(a, b, c): worth[a] / sum(worth) * worth[b] / (worth[b] + worth[c]) for a, b, c in permutations(range(3))}
    assert sum(expected.values()) == pytest.approx(1)
    assert chisquare([seen[order] for order in expected], [count * p for p in expected.values()]).pvalue > 0.01


def test_pairs_are_labelled_at_their_temperature():
    rows = list(grammar.pair_rows(3000, np.random.default_rng(3), temperature=0.5))
    gaps = np.array([row["true_rewards"][0] - row["true_rewards"][1] for row in rows])
    probability = 1 / (1 + np.exp(-np.abs(gaps) / 0.5))
    surprise = (np.sum(gaps > 0) + np.sum(gaps == 0) / 2 - probability.sum()) / np.sqrt(np.sum(probability * (1 - probability)))
    assert abs(surprise) < 3
    assert np.any(gaps == 0)


def test_rankings_are_labelled_at_their_temperature():
    rows = list(grammar.ranked_rows(3000, np.random.default_rng(4), answers=3, temperature=0.5))
    rewards = np.array([row["true_rewards"] for row in rows])
    first, last = (np.array([row["ranks"].index(rank) for row in rows]) for rank in (1, 3))
    probabilities = np.exp(rewards / 0.5) / np.exp(rewards / 0.5).sum(1, keepdims=True)
    hits, expected = first == rewards.argmax(1), probabilities.max(1)
    assert abs(np.sum(hits - expected)) / np.sqrt(np.sum(expected * (1 - expected))) < 3
    assert rewards[np.arange(3000), first].mean() > rewards[np.arange(3000), last].mean() + 1


def test_at_temperature_zero_nothing_is_mistaken_and_pairs_are_never_equal():
    for row in grammar.pair_rows(500, np.random.default_rng(5), temperature=0):
        better, worse = row["true_rewards"]
        assert better > worse
    for row in grammar.ranked_rows(500, np.random.default_rng(6), answers=4, temperature=0):
        assert sorted(row["ranks"]) == [1, 2, 3, 4]
        ranked = [value for _, value in sorted(zip(row["ranks"], row["true_rewards"], strict=True))]
        assert ranked == sorted(row["true_rewards"], reverse=True)


def test_rows_carry_the_rewards_of_their_own_different_answers():
    for row in grammar.pair_rows(300, np.random.default_rng(7), temperature=1):
        assert row["chosen"] != row["rejected"]
        assert {row[name][0] for name in ("chosen", "rejected")} == {" "}  # which parts it from the prompt
        assert [reward(row["prompt"], row[name]) for name in ("chosen", "rejected")] == row["true_rewards"]
    for row in grammar.ranked_rows(30, np.random.default_rng(8), answers=100, temperature=1):  # so many would meet by chance
        assert len(set(row["completions"])) == 100
        assert all(text.startswith(" ") for text in row["completions"])
        assert [reward(row["prompt"], text) for text in row["completions"]] == row["true_rewards"]
    for row in grammar.supervised_rows(300, np.random.default_rng(9)):
        assert reward(row["prompt"], row["completion"]) > -3
        assert row["completion"].startswith(" ")


def test_a_batch_of_rewards_needs_an_answer_for_every_prompt():
    with pytest.raises(ValueError, match="shorter"):
        reward_function([FORMER, LATTER], ["it was very good but the other one was very bad"])
