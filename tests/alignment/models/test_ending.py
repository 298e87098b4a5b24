"""What a model's settings name as ends, and what they say once surefoot has loaded it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from surefoot.alignment.data.tokenization.ends import AnswerEnds
from surefoot.alignment.models.ending import named_ends, write_ends
from tests.alignment.models.tiny import language_model, reward_model
from tests.alignment.tokenizers import gemma_like, llama_like


@pytest.mark.parametrize(
    ("generation", "config", "named"),
    [
        ({"eos_token_id": [7, 3]}, {"eos_token_id": 5}, (7, 3)),
        ({"eos_token_id": 7}, {}, (7,)),
        ({}, {"eos_token_id": 5}, ()),
        (None, {"eos_token_id": 5}, (5,)),
        (None, {"text_config": {"eos_token_id": [5, 6]}}, (5, 6)),
        (None, {"eos_token_id": 5, "text_config": {"eos_token_id": 6}}, (5,)),
        (None, {"eos_token_id": ["x", -1, True, 4]}, (4,)),
        (None, {}, ()),
        (None, None, ()),
    ],
)
def test_the_settings_for_generation_count_and_else_the_models(tmp_path, generation, config, named):
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert named_ends(str(tmp_path)) == named
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    assert named_ends(str(adapter)) == named, "an adapter has its base model's"


def test_a_loaded_models_settings_say_what_the_tokenizer_says():
    tokenizer = llama_like()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model = language_model(vocab_size=len(tokenizer), eos_token_id=9, bos_token_id=8, pad_token_id=None)
    model.generation_config.eos_token_id = None
    write_ends(model, tokenizer, AnswerEnds.of(tokenizer))
    assert (model.generation_config.eos_token_id, model.config.eos_token_id) == (2, [2, 9])
    for part in (model.generation_config, model.config):
        assert (part.bos_token_id, part.pad_token_id) == (1, tokenizer.pad_token_id)


def test_of_a_reward_model_too_and_what_the_tokenizer_has_not_stays():
    tokenizer = gemma_like()
    model = reward_model(vocab_size=len(tokenizer), eos_token_id=None, bos_token_id=8)
    write_ends(model, tokenizer, AnswerEnds.of(tokenizer))
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert model.config.bos_token_id == 8


@pytest.mark.parametrize(("family", "named"), [("qwen3_5", [0, 2]), ("llama4", [0, 2]), ("inkling_text", 0), ("cpmant", None)])
def test_settings_that_are_their_parts_alone_or_hold_one_id_or_none_are_no_error(family, named):
    config = CONFIG_MAPPING[family]()
    config.get_text_config().eos_token_id = None
    if named is None:
        del config.eos_token_id
    tokenizer = gemma_like()
    write_ends(SimpleNamespace(config=config, generation_config=None), tokenizer, AnswerEnds.of(tokenizer))
    assert getattr(config.get_text_config(), "eos_token_id", None) == named
