"""How far word counts get on the generated language task.

    python benchmarks/bag_of_words.py      # under a minute on one core

Logistic regressions (Bradley–Terry with a reward that is linear in counts) are fitted to noisy pairs and measured on pairs in their true
order. Each is reported at the penalty that does best on those very pairs, in its favour. Beside them stands what no function of the
counts can exceed, however it is trained, by enumerating all answers; and, as a control, a regression that is told which clause counts.
Writes benchmarks/results/bag_of_words.json."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from surefoot.alignment.tasks import grammar

RESULT = Path(__file__).parent / "results" / "bag_of_words.json"
SEEDS, PAIRS, HELD_OUT, TEMPERATURE = range(5), 8000, 2000, 0.2
PENALTIES = (1e-4, 1e-3, 1e-2)

Features = Callable[[str, str], Iterable[str]]


def words(prompt: str, answer: str) -> Iterator[str]:
    yield from answer.split()


def bigrams(prompt: str, answer: str) -> Iterator[str]:
    found = answer.split()
    yield from found
    yield from map(" ".join, pairwise(found))


def placed(prompt: str, answer: str) -> Iterator[str]:
    for place, half in enumerate(answer.split(" but ")):
        yield from (f"{word}@{place}" for word in half.split())


def asked(features: Features) -> Features:
    """Each feature by itself, and once more together with what the prompt asks about."""

    def both(prompt: str, answer: str) -> Iterator[str]:
        for feature in features(prompt, answer):
            yield from (feature, f"{grammar.asked_about(prompt)}: {feature}")

    return both


def told(prompt: str, answer: str) -> Iterator[str]:
    """The judgement of what was asked about, as one feature."""
    yield from (str((c.negated, c.adverb, c.adjective)) for c in grammar.parse(prompt, answer) or () if c.asked)


MODELS: dict[str, Features] = {
    "words": words,
    "words × former or latter asked": asked(words),
    "words × clause": placed,
    "words × clause × former or latter asked": asked(placed),
    "words and bigrams": bigrams,
    "words and bigrams × former or latter asked": asked(bigrams),
    "control: the clause that counts, negation and adverb and adjective as one": told,
}


def differences(rows: list[dict], features: Features, columns: dict[str, int], *, grow: bool) -> csr_matrix:
    """φ(chosen) − φ(rejected), one row per pair."""
    entries: Counter[tuple[int, int]] = Counter()
    for i, row in enumerate(rows):
        for answer, sign in ((row["chosen"], 1), (row["rejected"], -1)):
            for feature in features(row["prompt"], answer):
                if grow:
                    columns.setdefault(feature, len(columns))
                if feature in columns:
                    entries[i, columns[feature]] += sign
    places = np.array(list(entries), int)
    values = np.array(list(entries.values()), float)
    return csr_matrix((values, (places[:, 0], places[:, 1])), shape=(len(rows), len(columns)))


def fit(x: csr_matrix, penalty: float) -> np.ndarray:
    """Weights w that minimise the mean of −log σ(x·w), plus penalty/2 · ‖w‖²."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = x @ w
        wrong = np.exp(-np.logaddexp(0, margin))  # σ(−margin)
        value = np.logaddexp(0, -margin).mean() + penalty / 2 * (w @ w)
        return value, penalty * w - x.T @ wrong / x.shape[0]

    return minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 300}).x


def accuracy(margin: np.ndarray) -> float:
    """Share of pairs in the right order; equal scores count as half right."""
    return float(np.mean(np.sign(margin.round(9))) / 2 + 0.5)


def fitted() -> list[dict]:
    found: dict[tuple[str, float], list[float]] = {}
    for seed in SEEDS:
        generator = np.random.default_rng(seed)
        train = list(grammar.pair_rows(PAIRS, generator, temperature=TEMPERATURE))
        clean = list(grammar.pair_rows(HELD_OUT, generator, temperature=0))
        for name, features in MODELS.items():
            columns: dict[str, int] = {}
            x = differences(train, features, columns, grow=True)
            y = differences(clean, features, columns, grow=False)
            for penalty in PENALTIES:
                found.setdefault((name, penalty), []).append(accuracy(y @ fit(x, penalty)))
    rows = []
    for name in MODELS:
        penalty = max(PENALTIES, key=lambda p, n=name: np.mean(found[n, p]))
        values = found[name, penalty]
        row = {"features": name, "penalty": penalty, "accuracy": values}
        rows.append(row | {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))})
    return rows


def every_answer(place: str) -> Iterator[tuple[str, float]]:
    """Every answer to a question about one place, with the generator's probability of it."""
    other = next(p for p in grammar.PLACES if p != place)
    judgements = list(product((False, True), grammar.ADVERBS, grammar.POSITIVE + grammar.NEGATIVE))

    def clauses(pronoun: str, called: str) -> list[tuple[str, bool, float]]:
        found = []
        for (subject, chance), (negated, adverb, adjective) in product(
            ((pronoun, grammar.PRONOUN), (f"the {called}", 1 - grammar.PRONOUN)), judgements
        ):
            chance *= (grammar.NEGATED if negated else 1 - grammar.NEGATED) / len(grammar.ADVERBS) / len(grammar.POSITIVE)
            text = f"{subject} was {'not ' if negated else ''}{adverb} {adjective}"
            found.append((text, (adjective in grammar.POSITIVE) != negated, chance))
        return found

    for (own, good, p), (rest, also_good, q) in product(clauses("it", place), clauses("the other one", other)):
        signs = 0.5 * (grammar.OPPOSED if good != also_good else 1 - grammar.OPPOSED)
        yield f"{own} but {rest}", 0.5 * signs * p * q
        yield f"{rest} but {own}", 0.5 * signs * p * q


def best_of_all_functions(features: Features) -> float:
    """The largest accuracy on clean pairs of anything that sees both answers' features, unordered, and what is asked.

    With pₐ the distribution of the reward given features a, the best guess for a pair is right with probability
    max(P(rₐ > r_b), P(rₐ < r_b)).
    """
    prompt = grammar.prompt_of(*grammar.THINGS[:2], "latter")  # the former is the same with two words exchanged
    values: dict[float, int] = {}
    chances: dict[frozenset, Counter[int]] = {}
    for answer, chance in every_answer("latter"):
        value = values.setdefault(round(grammar.reward(prompt, answer), 9), len(values))
        chances.setdefault(frozenset(Counter(features(prompt, answer)).items()), Counter())[value] += chance
    table = np.array([[counts[v] for v in range(len(values))] for counts in chances.values()])
    assert abs(table.sum() - 1) < 1e-9
    size = np.array(list(values))
    lower, higher = (size[:, None] > size) @ table.T, (size[:, None] < size) @ table.T
    right = total = 0.0
    for rows in np.array_split(table, len(table) // 500 + 1):  # all pairs at once would take gigabytes
        above, below = rows @ lower, rows @ higher
        right += np.maximum(above, below).sum()
        total += above.sum() + below.sum()
    return float(right / total)


def main() -> None:
    began = time.perf_counter()
    rows = fitted()
    limits = {name: best_of_all_functions(MODELS[name]) for name in ("words", "words and bigrams", "words × clause")}
    result = {
        "command": "python benchmarks/bag_of_words.py",
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - began, 1),
        "pairs": PAIRS,
        "temperature": TEMPERATURE,
        "held_out_pairs": HELD_OUT,
        "seeds": len(SEEDS),
        "fitted": rows,
        "best_of_all_functions": limits,
    }
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for row in rows:
        print(f"{row['features']}: {row['mean']:.4f} ± {row['std']:.4f} (penalty {row['penalty']:g})")
    for name, limit in limits.items():
        print(f"no function of {name} and what is asked exceeds {limit:.4f}")
    print(f"{result['seconds']} s")


if __name__ == "__main__":
    main()
