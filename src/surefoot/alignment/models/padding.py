"""A padding token that is nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from surefoot.alignment.models.ending import ends_of, listed

PAD_TOKEN = "<|pad|>"


def give_own_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[str, ...]:
    """Make sure that no answer can end with the token that pads.

    transformers reads a sequence's score at the last token that is not ``config.pad_token_id``. Where that is the EOS, as in
    GPT-2's tokenizer, the score of a finished answer would be read one token early. Then a token is added to the tokenizer,
    and to the embedding if that has no row to spare; the new row is the mean of the others, and no score depends on it.

    Args:
        model: for sequence classification; its configuration's padding token becomes the tokenizer's.
        tokenizer: the model's; changed where it has no padding token of its own.
        folder: where the model was loaded from: its generation settings name more tokens that end an answer.

    Returns:
        sentences on what was changed.
    """
    notices = []
    ends = {
        tokenizer.unk_token_id,
        *ends_of(str(folder), tokenizer).sampling,
        *listed(getattr(model.config, "eos_token_id", None)),
    }
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        why = (
            "has no padding token"
            if tokenizer.pad_token_id is None
            else f"pads with {tokenizer.pad_token}, which is a real token"
        )
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        notices.append(f"the tokenizer {why}: it got {PAD_TOKEN}, since a score is read at the last token that is no padding")
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id >= rows:
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            weight[rows:] = weight[:rows].mean(dim=0)
    for part in (model.config, model.config.get_text_config()):
        part.pad_token_id = tokenizer.pad_token_id
    return tuple(notices)
