"""How far rounding alone takes the first ratios of PPO on a language model from 1, for models of 2 to 40 layers.

    python benchmarks/ratio_tolerance.py                      # random models: about ten minutes on two cores
    python benchmarks/ratio_tolerance.py --real MODEL_FOLDER  # and a real one, with text to begin answers with

Answers are sampled, and their tokens' log-probabilities compared with those that the update computes of the same weights: d of each
token, in nats. Writes benchmarks/results/ratio_tolerance.json: a row per model and dtype, with the root mean square and the largest
|d|, and the tolerance that `surefoot align ppo` takes there (surefoot.alignment.rlhf.ratios; docs/decisions/ratio_tolerance.md).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from surefoot.alignment.likelihood.distribution import AnswerDistribution
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.rlhf.ratios import ratio_tolerance
from surefoot.alignment.sampling.sampler import Sampler

RESULT = Path(__file__).parent / "results" / "ratio_tolerance.json"
LAYERS = (2, 5, 10, 20, 30, 40)
SHAPES = ((64, 256, 0.02), (64, 256, 0.3), (256, 4096, 0.02), (64, 32_000, 0.1))
"""Hidden size, vocabulary and standard deviation of the weights; the larger that is, the sharper is what the model predicts."""
DTYPES = (torch.float32, torch.bfloat16)
PROMPTS, ANSWERS, LONGEST = 6, 4, 48
TEXTS = (
    "The capital of France is", "Once upon a time there was a", "def add(a, b):\n    return", "Water boils at a temperature of",
    "1, 2, 3, 4,", "Dear Sir or Madam, I am writing to",
)  # fmt: skip


def random_model(layers: int, hidden: int, vocabulary: int, deviation: float, *, seed: int) -> Any:
    """A Llama with weights drawn at random."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        initializer_range=deviation,
        max_position_embeddings=256,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def measured(model: Any, prompts: list[np.ndarray], *, temperature: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """What two computations of the same log-probabilities differ by."""
    likelihood = Likelihood(model.eval())
    under = AnswerDistribution(temperature)
    noise = np.random.default_rng(seed).random((len(prompts) * ANSWERS, LONGEST))
    samples = Sampler(likelihood, under=under, longest=LONGEST).sample(prompts, answers=ANSWERS, noise=noise)
    groups = [(prompt, samples.answers[i * ANSWERS : (i + 1) * ANSWERS]) for i, prompt in enumerate(prompts)]
    with torch.no_grad():
        whole = likelihood.completions(groups, under=under)
    kept = torch.from_numpy(np.stack(samples.log_probabilities))
    d = (whole.tokens - kept[whole.completion_of, whole.step_of]).double().abs()
    return {
        "dtype": str(likelihood.head.weight.dtype).removeprefix("torch."),
        "temperature": temperature,
        "tokens": len(d),
        "entropy": float(-whole.tokens.mean()),
        "root_mean_square": float(d.square().mean().sqrt()),
        "largest": float(d.max()),
        "largest_ratio_error": float(torch.expm1(d.max())),
        "tolerance": ratio_tolerance(likelihood, temperature=temperature, tokens=len(d)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=Path, help="folder of a language model; its row is left out without it")
    parser.add_argument("--seeds", type=int, default=2)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    for layers in LAYERS:
        for hidden, vocabulary, deviation in SHAPES:
            for dtype in DTYPES:
                for seed in range(chosen.seeds):
                    model = random_model(layers, hidden, vocabulary, deviation, seed=seed).to(dtype)
                    numbers = np.random.default_rng(seed).integers(3, vocabulary, (PROMPTS, 12)).astype(np.int32)
                    about = {"model": "random Llama", "layers": layers, "hidden": hidden, "vocabulary": vocabulary}
                    about |= {"deviation": deviation, "seed": seed}
                    note(about | measured(model, list(numbers), seed=seed))
    if chosen.real is None or not (chosen.real / "config.json").is_file():
        print(f"no real model: {'--real was not given' if chosen.real is None else f'{chosen.real} holds no config.json'}")
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(chosen.real)
        prompts = [np.array(tokenizer(text).input_ids, np.int32) for text in TEXTS]
        for dtype in DTYPES:
            for temperature in (1.0, 0.7):
                model = transformers.AutoModelForCausalLM.from_pretrained(chosen.real, dtype=dtype)
                about = {
                    "model": chosen.real.name,
                    "layers": model.config.num_hidden_layers,
                    "hidden": model.config.hidden_size,
                }
                about |= {"vocabulary": model.config.vocab_size, "seed": 0}
                note(about | measured(model, prompts, temperature=temperature))
    report = {"torch": torch.__version__, "shares": shares(rows), "rows": rows}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    for kind, share in report["shares"].items():
        print(f"{kind}: the largest |d| is {share:.2f} of what is tolerated")


def shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The largest |d| as a share of what is tolerated, of each kind of model over all depths."""
    largest: dict[str, float] = {}
    for row in rows:
        kind = row["model"] + (f", deviation {row['deviation']}" if "deviation" in row else "") + f", {row['dtype']}"
        largest[kind] = max(largest.get(kind, 0.0), row["largest"] / math.log1p(row["tolerance"]))
    return {kind: round(share, 3) for kind, share in largest.items()}


if __name__ == "__main__":
    main()
