"""What can be chosen about the model and its adapter. No engine is imported here, so that help and mistakes cost no start-up
time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from surefoot.errors import require
from surefoot.runs.settings import Settings


@dataclass(frozen=True)
class ModelConfiguration(Settings):
    """Which model is trained, where, and in which precision."""

    model: str
    """A folder with a Hugging Face model or a PEFT adapter, a run of surefoot align, or a model's name on the hub. Weights must be
    safetensors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is computed. auto takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto and float32 keep weights in float32, whatever the file holds; on a GPU, auto computes matrix products in bfloat16
    (autocast). bfloat16 keeps the weights themselves in bfloat16: half the memory, but small updates are rounded away; the run says
    where most are."""
    dropout: bool = False
    """Keep the dropout that the model's own configuration asks for. Without it every log-probability is the policy's own;
    with it, ratios between two policies are noise even where the weights agree."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: far less memory, a third more time."""
    trust_remote_code: bool = False
    """Run the Python files that come with the model. Only for models whose files you have read."""

    def _check(self) -> None:
        require(bool(self.model.strip()), "--model is empty; give a folder with a Hugging Face model, or its name on the hub")


@dataclass(frozen=True)
class AdapterConfiguration(Settings):
    """Low-rank adapters: W + (α/r) B A with a frozen W, where A is r × inputs and B is outputs × r (Hu et al. 2021)."""

    lora_rank: int = 0
    """r, how many directions each matrix may change in. 0 trains all weights, without an adapter."""
    lora_alpha: float | None = None
    """α: what the adapter adds is scaled by α/r. none takes 2r."""
    lora_dropout: float = 0.0
    """Probability with which an adapter's inputs are dropped in training."""
    lora_targets: str = "all-linear"
    """Which linear layers get an adapter: all of them, the head apart, or names with commas between them, as in
    q_proj,v_proj."""

    def _check(self) -> None:
        rank, alpha = self.lora_rank, self.lora_alpha
        require(rank >= 0, f"--lora-rank must be at least 1, or 0 to train all weights, but is {rank}")
        positive = alpha is None or 0 < alpha < math.inf
        require(positive, f"--lora-alpha must be positive and finite, or none, but is {alpha}")
        require(0 <= self.lora_dropout < 1, f"--lora-dropout must be at least 0 and less than 1, but is {self.lora_dropout}")
        named = all(name.strip() for name in self.lora_targets.split(","))
        require(
            named,
            f"--lora-targets {self.lora_targets!r} has an empty name in it; give all-linear, or names as in q_proj,v_proj",
        )
        defaults = {field.name: field.default for field in fields(self)}
        for name, reason in self.idle_options().items():
            sentence = f"--{name.replace('_', '-')} would do nothing: {reason}; leave it out, or give --lora-rank"
            require(getattr(self, name) == defaults[name], sentence)

    @property
    def alpha(self) -> float:
        """α as it is used."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha

    def idle_options(self) -> dict[str, str]:
        """Settings that nothing reads under the others, each with the reason."""
        if self.lora_rank:
            return {}
        return dict.fromkeys(("lora_alpha", "lora_dropout", "lora_targets"), "with --lora-rank 0 there is no adapter")
