"""Sampling from a model, by surefoot or by transformers' generate: python generate.py {surefoot,transformers} MODEL [options]

Both run in one environment, on the same random prompts, without top-k or top-p. One call to warm up, then calls for about ten
seconds; the rate is that of the median call."""

import argparse
import json
import os
import resource
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("side", choices=["surefoot", "transformers"])
parser.add_argument("model")
parser.add_argument("--prompts", type=int, default=16)
parser.add_argument("--prompt-tokens", type=int, default=64)
parser.add_argument("--answers", type=int, default=1, help="answers to each prompt")
parser.add_argument("--longest", type=int, default=64)
parser.add_argument("--ends", type=int, default=0, help="how many words end an answer; none: all are as long as the limit")
parser.add_argument("--seconds", type=float, default=10.0)
arguments = parser.parse_args()
transformers.utils.logging.set_verbosity_error()
began = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
words = model.config.vocab_size
rng = np.random.default_rng(0)
prompts = rng.integers(3, words, (arguments.prompts, arguments.prompt_tokens))
rows, ends = arguments.prompts * arguments.answers, tuple(range(2, 2 + arguments.ends))

if arguments.side == "surefoot":
    from surefoot.alignment.likelihood.distribution import AnswerDistribution
    from surefoot.alignment.likelihood.likelihood import Likelihood
    from surefoot.alignment.sampling.sampler import Sampler

    likelihood = Likelihood(model)
    sampler = Sampler(likelihood, under=AnswerDistribution(ends=ends), longest=arguments.longest)
    own = [prompt.astype(np.int32) for prompt in prompts]

    def sample():
        noise = rng.random((rows, arguments.longest))
        return sum(map(len, sampler.sample(own, answers=arguments.answers, noise=noise).answers))

else:
    ids = torch.from_numpy(prompts)
    lengths = {} if ends else {"min_new_tokens": arguments.longest}
    torch.manual_seed(0)

    def sample():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=arguments.longest,
            num_return_sequences=arguments.answers,
            eos_token_id=list(ends) or [1],
            pad_token_id=0,
            **lengths,
        )
        ended = np.isin(output[:, arguments.prompt_tokens :].numpy(), ends)
        return int(np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, ended.shape[1]).sum())


sample()
started, rates = time.perf_counter(), []
while len(rates) < 3 or time.perf_counter() - started < arguments.seconds:
    begin = time.perf_counter()
    tokens = sample()
    rates.append(tokens / (time.perf_counter() - begin))
result = {
    "side": arguments.side,
    "calls": len(rates),
    "tokens_per_second": statistics.median(rates),
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "seconds_from_start": time.perf_counter() - began,
}
if arguments.side == "surefoot":
    assert sampler.notice is None
    operations = likelihood.work.operations
    sample()
    operations = likelihood.work.operations - operations

    from surefoot.alignment.models.counting import matrix_rate

    def read_rate(size):
        """Bytes per second of adding up an array as large as what every token reads, so that caches count alike."""
        array, times = torch.ones(size // 4), []
        for _ in range(20):
            begin = time.perf_counter()
            array.sum()
            times.append(time.perf_counter() - begin)
        return size / min(times)

    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    weights = 4 * (sum(p.numel() for p in model.parameters()) - (0 if head is embedding else embedding.numel()))
    config = model.config
    per_token = (
        2 * 4 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    )
    kept = per_token * (arguments.prompts * arguments.prompt_tokens + rows * arguments.longest // 2)
    bytes_read, rate, matrices = weights + kept, read_rate(weights + kept), matrix_rate(torch.device("cpu"), 1.0)
    bounds = {
        "operations_per_call": operations,
        "operations_per_second_of_matrices": matrices,
        "tokens_per_second_by_operations": rows * arguments.longest / (operations / matrices),
        "bytes_per_step": bytes_read,
        "bytes_per_second_of_reading": rate,
        "tokens_per_second_by_bytes": rows / (bytes_read / rate),
    }
    lowest = min(bounds["tokens_per_second_by_operations"], bounds["tokens_per_second_by_bytes"])
    result |= bounds | {"share_of_lower_bound": result["tokens_per_second"] / lowest}
print(json.dumps(result))
