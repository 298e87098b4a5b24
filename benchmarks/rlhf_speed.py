"""RLHF with PPO against TRL 1.9, the last release that had PPO: the same model, the same prompts, in turn.

    make peers                                # the peers' own environments, once
    python benchmarks/rlhf_speed.py           # about eight minutes on two quiet cores

The model is that of benchmarks/alignment_speed.py: a Llama of random weights with 32,000 words, hidden size 256 and 6 layers, in
float32. Prompts and answers have 64 tokens; an iteration samples 16 answers and takes 4 passes over them in one step each.
The first side has a policy, a critic, a reward model and a reference with weights of their own, and one answer per prompt, as the peer has
them. `shared` asks each prompt for 4 answers and has the critic as a head on the policy. Rates are of the iterations alone, sampling,
scoring and update; imports, loading and the saved model are outside on both sides. Raw results: benchmarks/results/rlhf_speed/."""

from __future__ import annotations

import tempfile
from pathlib import Path

import paired
from alignment_speed import write_model, write_prompts
from paired import HERE, ROOT, Comparison, Group, Side

WORK = Path(tempfile.gettempdir()) / "surefoot-rlhf-speed"
MODEL, REWARD, PROMPTS, QUARTER = (WORK / name for name in ("model", "reward", "prompts.jsonl", "quarter.jsonl"))
ANSWERS, LENGTH = 64, 64
OPTIONS = (
    f"align ppo --model {MODEL} --reward {REWARD} --longest-answer {LENGTH} --shortest-answer {LENGTH} --learning-rate-schedule constant"
    " --samples-every 0 --no-tensorboard --json --quiet"
)
TRL = Side("trl", f"{ROOT}/peers-trl-ppo/bin/python {HERE}/peers/trl_ppo.py {MODEL} {REWARD} {PROMPTS} --answer {LENGTH}")
GROUPS = {
    "four-models": Group(
        (
            Side("surefoot", f"{OPTIONS} --data {PROMPTS} --critic reward --answers-per-prompt 1 --batch-size 16", True),
            TRL,
            Side("shared", f"{OPTIONS} --data {QUARTER} --critic shared --answers-per-prompt 4 --batch-size 4", True),
        ),
        (
            Comparison("surefoot", "trl", 1.6, 2),
            Comparison("surefoot", "trl", 1, 1, "peak_mb"),
            Comparison("shared", "trl", 1, 1),
            Comparison("shared", "trl", 1, 1, "peak_mb"),
        ),
        "answers_per_second",
    ),
}


def write_reward_model() -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(REWARD)
    AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1).save_pretrained(REWARD)


if __name__ == "__main__":
    WORK.mkdir(exist_ok=True)
    write_model(MODEL)
    write_reward_model()
    write_prompts(PROMPTS, rows=ANSWERS, prompt=LENGTH)
    write_prompts(QUARTER, rows=ANSWERS // 4, prompt=LENGTH)
    paired.main(
        GROUPS, description=__doc__, results=HERE / "results" / "rlhf_speed", libraries=("surefoot", "torch", "transformers")
    )
