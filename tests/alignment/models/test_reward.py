"""Reward models: a head that is there or said to be new, and scores that plain transformers reads at the same token."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration, ModelConfiguration
from surefoot.alignment.models.loading import hidden_states_and_head, load_reward_model
from surefoot.alignment.models.padding import PAD_TOKEN
from surefoot.alignment.models.saving import save_model
from surefoot.errors import UsageError
from tests.alignment.likelihood.architectures import build
from tests.alignment.models.tiny import FAMILIES, language_model, reward_model, save_language_model
from tests.alignment.tokenizers import gpt2_like, llama_like, qwen_like, word_level

IDS = torch.tensor([[3, 5, 4, 9], [6, 3, 8, 1]])


def load(folder, tokenizer=None, new_head=True, seed=0, **options):
    configuration = ModelConfiguration(str(folder), **options)
    return load_reward_model(configuration, tokenizer or word_level(), new_head=new_head, seed=seed)


def refused(folder, sentence, new_head=True):
    with pytest.raises(UsageError, match=sentence) as error:
        load(folder, new_head=new_head)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_keeps_its_trunk_and_gets_a_new_head(tmp_path, family):
    original = save_language_model(tmp_path, family).eval()
    model, notices = load(tmp_path)
    trunk, head = hidden_states_and_head(model)
    assert model.training
    assert model.config.num_labels == 1
    hidden = original.base_model(IDS).last_hidden_state
    assert torch.equal(trunk(IDS).last_hidden_state, hidden)
    assert torch.equal(model(IDS).logits, head(hidden)[:, -1])
    size = hidden.shape[-1]
    told = f"{tmp_path} is a language model: its reward head is new, drawn from N(0, 1/{size + 1})"
    assert [notice for notice in notices if "dropout" not in notice] == [told], "nothing about the language model's own head"


def test_a_new_head_is_normal_with_the_published_scale_and_comes_from_the_seed(tmp_path):
    save_language_model(tmp_path, "gpt2", n_embd=1024, n_layer=0)
    torch.manual_seed(7)
    weights = [load(tmp_path, seed=seed)[0].score.weight.detach() for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    deviation = float(weights[0].std()) * math.sqrt(1025)
    assert abs(deviation - 1) < 4 / math.sqrt(2 * 1024), "four standard errors"
    assert abs(float(weights[0].mean())) * math.sqrt(1025) < 4 / math.sqrt(1024)


def test_a_head_that_is_there_is_kept(tmp_path):
    original = reward_model().eval()
    original.save_pretrained(tmp_path)
    for new_head in (False, True):
        model, notices = load(tmp_path, new_head=new_head)
        assert torch.equal(model(IDS).logits, original(IDS).logits)
        assert notices == ()


def test_reward_models_without_what_makes_one_are_refused(tmp_path):
    save_language_model(tmp_path / "language")
    refused(tmp_path / "language", "is a language model, LlamaForCausalLM, without a reward head; give a", new_head=False)
    reward_model(num_labels=3).save_pretrained(tmp_path / "three")
    refused(tmp_path / "three", "has 3 labels; a reward model has one")
    language_model().model.save_pretrained(tmp_path / "trunk")
    refused(tmp_path / "trunk", "is neither a language model nor a reward model: LlamaModel")
    shape = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    encoder = t.BertForSequenceClassification(t.BertConfig(**shape, num_labels=1))
    encoder.save_pretrained(tmp_path / "encoder")
    refused(tmp_path / "encoder", "the head of BertForSequenceClassification is not one linear layer without bias")
    adapted = add_adapter(language_model(), AdapterConfiguration(lora_rank=1))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    refused(tmp_path / "adapter", "is an adapter; for a reward model, give the folder of the merged model")


def test_an_architecture_without_a_sequence_classification_model_is_refused_for_that(tmp_path):
    build("cohere").save_pretrained(tmp_path)
    refused(
        tmp_path,
        "^--model .*: transformers has no sequence-classification model for cohere, so no reward model and no critic of its own; take"
        " --critic shared or --weight group$",
    )


def test_a_head_may_be_called_a_classifier(tmp_path):
    original = build("ctrl")
    original.save_pretrained(tmp_path)
    model, notices = load(tmp_path)
    trunk, head = hidden_states_and_head(model)
    assert torch.equal(trunk(IDS).last_hidden_state, original.base_model(IDS).last_hidden_state)
    assert torch.equal(model(IDS).logits, head(trunk(IDS).last_hidden_state)[:, -1])
    assert any("its reward head is new" in notice for notice in notices)


def test_a_missing_head_is_never_made_up_for_a_reward_model(tmp_path):
    reward_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "score.weight"}, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, "lacks weights: score.weight")


def test_other_missing_weights_are_an_error_beside_a_new_head(tmp_path):
    save_language_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "model.norm.weight"}, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, "lacks weights: model.norm.weight")


def tokenizer_that_pads_with_its_end():
    tokenizer = gpt2_like()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


TOKENIZERS = {
    "pad of its own": (word_level, False),
    "no pad": (gpt2_like, True),
    "pad is the end": (tokenizer_that_pads_with_its_end, True),
    "ChatML": (qwen_like, False),
    "sentence pieces": (llama_like, True),
}


@pytest.mark.parametrize(
    ("name", "family", "adapted"),
    [
        *((name, "gpt2", False) for name in TOKENIZERS),
        *(("no pad", family, False) for family in ("llama", "opt", "gpt_neox")),
        *(("no pad", family, True) for family in ("llama", "gpt2")),
    ],
)
def test_plain_transformers_scores_a_padded_batch_at_the_last_real_token(tmp_path, name, family, adapted):
    make, added = TOKENIZERS[name]
    tokenizer = make()
    rows = len(tokenizer)
    save_language_model(tmp_path / "base", family, vocab_size=rows)
    model, notices = load(tmp_path / "base", tokenizer)
    assert (PAD_TOKEN in " ".join(notices)) is added
    if adapted:
        model = add_adapter(model, AdapterConfiguration(lora_rank=2))
    save_model(model, tokenizer, tmp_path / "saved", card="")

    generator = torch.Generator().manual_seed(0)
    end = [tokenizer.eos_token_id]
    sequences = [torch.randint(3, rows, (n,), generator=generator).tolist() + end for n in (2, 9, 5, 1)]
    trunk, head = hidden_states_and_head(model.eval())
    expected = torch.stack([head(trunk(torch.tensor([ids])).last_hidden_state)[0, len(ids) - 1] for ids in sequences])

    plain = t.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    saved_tokenizer = t.AutoTokenizer.from_pretrained(tmp_path / "saved", padding_side="right")
    batch = saved_tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
    assert (batch["input_ids"][0, 3:] == saved_tokenizer.pad_token_id).all()
    assert saved_tokenizer.pad_token_id != saved_tokenizer.eos_token_id
    torch.testing.assert_close(plain(**batch).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end", [4, [1, 4]])
def test_a_token_at_which_the_models_own_answers_end_does_not_pad(tmp_path, end):
    tokenizer = word_level()
    tokenizer.pad_token = "b"
    assert tokenizer.pad_token_id == 4
    save_language_model(tmp_path, eos_token_id=end)
    (tmp_path / "generation_config.json").unlink()
    assert any("pads with b, which is a real token" in notice for notice in load(tmp_path, tokenizer)[1])


def test_an_unknown_word_does_not_pad(tmp_path):
    tokenizer = word_level()
    tokenizer.pad_token = tokenizer.unk_token
    save_language_model(tmp_path)
    assert any(PAD_TOKEN in notice for notice in load(tmp_path, tokenizer)[1])


def test_a_token_at_which_generation_stops_does_not_pad(tmp_path):
    tokenizer = qwen_like()
    model = save_language_model(tmp_path, vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.save_pretrained(tmp_path)
    _, notices = load(tmp_path, tokenizer)
    assert notices[-1].startswith("the tokenizer pads with <|endoftext|>, which is a real token: it got <|pad|>")


def test_a_new_embedding_row_is_the_mean_of_the_others_and_only_added_where_none_is_spare(tmp_path):
    tokenizer = gpt2_like()
    rows = len(tokenizer)
    original = save_language_model(tmp_path / "full", vocab_size=rows)
    model, _ = load(tmp_path / "full", tokenizer)
    weight = model.get_input_embeddings().weight
    assert tokenizer.pad_token_id == model.config.pad_token_id == rows
    assert model.config.vocab_size == len(weight) == rows + 1
    old = original.get_input_embeddings().weight
    assert torch.equal(weight[:rows], old)
    torch.testing.assert_close(weight[rows], old.mean(dim=0))
    save_language_model(tmp_path / "spare", vocab_size=rows + 30)
    model, _ = load(tmp_path / "spare", gpt2_like())
    assert len(model.get_input_embeddings().weight) == rows + 30


def test_a_reward_model_loaded_again_needs_no_second_pad_token(tmp_path):
    tokenizer = gpt2_like()
    save_language_model(tmp_path / "base", "gpt2", vocab_size=len(tokenizer))
    model, _ = load(tmp_path / "base", tokenizer)
    save_model(model, tokenizer, tmp_path / "reward", card="")
    again = t.AutoTokenizer.from_pretrained(tmp_path / "reward")
    loaded, notices = load(tmp_path / "reward", again, new_head=False)
    assert notices == ()
    assert len(again) == len(tokenizer)
    assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)
