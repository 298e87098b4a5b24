"""The four-model PPO of TRL 1.9, the last release that had one, on prompts of random words: python trl_ppo.py MODEL REWARD DATA"""

import argparse
import json
import os
import resource
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("reward")
parser.add_argument("data")
parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
parser.add_argument("--batch", type=int, default=16, help="answers in an iteration")
arguments = parser.parse_args()
transformers.utils.logging.set_verbosity_error()

tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
with open(arguments.data) as file:
    prompts = Dataset.from_list([{"input_ids": tokenizer(json.loads(line)["prompt"])["input_ids"]} for line in file])


def policy():
    return AutoModelForCausalLM.from_pretrained(arguments.model)


def scorer():
    return AutoModelForSequenceClassification.from_pretrained(arguments.reward, num_labels=1)


settings = PPOConfig(
    output_dir=os.path.join(os.environ.get("TMPDIR", "/tmp"), "trl-out"),
    per_device_train_batch_size=4,
    gradient_accumulation_steps=arguments.batch // 4,
    num_mini_batches=1,
    num_ppo_epochs=4,
    total_episodes=len(prompts),
    response_length=arguments.answer,
    local_rollout_forward_batch_size=arguments.batch,
    num_sample_generations=0,
    report_to=[],
    logging_steps=10_000,
    save_strategy="no",
    use_cpu=True,
    bf16=False,
    disable_tqdm=True,
)
trainer = PPOTrainer(
    args=settings,
    processing_class=tokenizer,
    model=policy(),
    ref_model=policy(),
    reward_model=scorer(),
    value_model=scorer(),
    train_dataset=prompts,
    eval_dataset=prompts.select(range(4)),
)
start = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - start
result = {
    "answers": len(prompts),
    "seconds": seconds,
    "answers_per_second": len(prompts) / seconds,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}
print(json.dumps(result))
