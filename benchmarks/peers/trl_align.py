"""TRL's DPO or reward trainer on a JSONL file: python trl_align.py {dpo,reward} MODEL DATA [--cached-reference]"""

import argparse
import json
import os
import resource
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import transformers
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

parser = argparse.ArgumentParser()
parser.add_argument("method", choices=["dpo", "reward"])
parser.add_argument("model")
parser.add_argument("data")
parser.add_argument("--batch", type=int, default=4, help="pairs in a step")
parser.add_argument("--cached-reference", action="store_true", help="reference log-probabilities before the first step")
arguments = parser.parse_args()
transformers.utils.logging.set_verbosity_error()
began = time.perf_counter()

with open(arguments.data) as file:
    data = Dataset.from_list([json.loads(line) for line in file])
common = {
    "output_dir": os.path.join(os.environ.get("TMPDIR", "/tmp"), "trl-out"),
    "per_device_train_batch_size": arguments.batch,
    "num_train_epochs": 1,
    "report_to": [],
    "logging_steps": 10_000,
    "save_strategy": "no",
    "use_cpu": True,
    "max_length": 2048,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
tokenizer = AutoTokenizer.from_pretrained(arguments.model)
if arguments.method == "dpo":
    config = DPOConfig(precompute_ref_log_probs=arguments.cached_reference, **common)
    trainer = DPOTrainer(model=arguments.model, args=config, train_dataset=data, processing_class=tokenizer)
else:
    trainer = RewardTrainer(model=arguments.model, args=RewardConfig(**common), train_dataset=data, processing_class=tokenizer)


class Clock(TrainerCallback):
    """From the first step's beginning to the last one's end."""

    first = last = None

    def on_step_begin(self, *_, **__):
        self.first = self.first or time.perf_counter()

    def on_step_end(self, *_, **__):
        self.last = time.perf_counter()


clock = Clock()
trainer.add_callback(clock)
started = time.perf_counter()
trainer.train()
seconds = clock.last - clock.first
print(
    json.dumps(
        {
            "peer": "trl",
            "method": arguments.method,
            "cached_reference": arguments.cached_reference,
            "pairs": len(data),
            "seconds": seconds,
            "startup_seconds": started - began,
            "pairs_per_second": len(data) / seconds,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
)
