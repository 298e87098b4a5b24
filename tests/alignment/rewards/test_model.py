"""Reward models score what they were trained on: the policy's own ids, or what its text is in their own tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as t
from tokenizers import Tokenizer

from surefoot.alignment.data.configuration import DataConfiguration
from surefoot.alignment.data.loading import load_examples
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.models.configuration import ModelConfiguration
from surefoot.alignment.rewards import ModelReward, open_reward
from surefoot.alignment.rewards.model import same_tokenizer
from surefoot.errors import RunError, UsageError
from tests.alignment.data.helpers import assistant, user, write_lines
from tests.alignment.models.tiny import language_model, reward_model
from tests.alignment.rewards.helpers import answers_of, prompts_of
from tests.alignment.tokenizers import CHATML, gemma_like, gpt2_like, llama_like, qwen_like, word_level

MAKERS = {"word-level": word_level, "gpt2": gpt2_like, "llama": llama_like, "qwen": qwen_like}


def save(folder, tokenizer, family="llama", **changes):
    """A reward model of random weights, with its tokenizer."""
    size = len(tokenizer)
    model = reward_model(
        family,
        vocab_size=size,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def opened(folder, policy_tokenizer, **options):
    return open_reward(str(folder), policy_tokenizer, settings=ModelConfiguration("the policy"), **options)


def own_score(model, ids):
    """What transformers reads at a sequence's last token, alone and without padding."""
    with torch.no_grad():
        trunk = model.base_model(torch.tensor([ids])).last_hidden_state
        return float(model.score(trunk)[0, -1, 0])


PROMPTS = ["what is the answer ?", "yes", "the good a b c d"]
ANSWERS = [[" no", " a b c"], [" the answer is yes .", " good"], [" h", " bad bad"]]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_with_the_policys_tokenizer_the_sampled_ids_are_scored_at_their_last_token(tmp_path, family):
    tokenizer = word_level()
    model = save(tmp_path, tokenizer, family)
    reward = opened(tmp_path, tokenizer)
    assert isinstance(reward, ModelReward)
    assert reward.same_tokens
    prompts = prompts_of(PROMPTS, tokenizer)
    answers = [answers_of(own, tokenizer) for own in ANSWERS]
    answers[1][0] = answers[1][0][:-1]  # cut: it has no end
    answers[2][1] = np.array([5, 0, 2], np.int32)  # padding and unknown tokens are tokens
    finished = np.array([True, True, False, True, True, False])
    reward.check(prompts, longest_answer=8)
    expected = [own_score(model, [*prompt.ids, *ids]) for prompt, own in zip(prompts, answers, strict=True) for ids in own]
    for at_once in (8192, 20, 1):
        reward._at_once = at_once
        given = reward.rewards(prompts, answers, finished)
        assert given.dtype == np.float64
        assert given == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert not reward.likelihood.model.training
    assert not any(p.requires_grad for p in reward.likelihood.model.parameters())
    assert reward.notices == ()
    assert len(set(np.round(expected, 4))) == 6


def test_a_reward_models_training_reads_the_same_score(tmp_path):
    tokenizer = gpt2_like()
    model = save(tmp_path / "model", tokenizer)
    rows = [{"prompt": "what is", "chosen": " the answer", "rejected": " no"}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    (example,) = load_examples(DataConfiguration(str(path), cache=False), tokenizer, purpose="preference").examples
    with torch.no_grad():
        trained = Likelihood(model).scores([(example.prompt, example.completions)])
    reward = opened(tmp_path / "model", gpt2_like())
    given = reward.rewards(prompts_of(["what is"], tokenizer), [list(example.completions)], np.array([True, True]))
    assert given == pytest.approx(trained.numpy(), rel=1e-5)


def test_parts_hold_as_many_tokens_as_they_may_and_every_answer_once(tmp_path, monkeypatch):
    tokenizer = word_level()
    save(tmp_path, tokenizer)
    reward = opened(tmp_path, tokenizer)
    seen = []
    scores = reward.likelihood.scores
    monkeypatch.setattr(reward.likelihood, "scores", lambda groups: seen.append(groups) or scores(groups))
    prompts = prompts_of(["a b c", "d"], tokenizer)
    answers = [[np.array([4, 5], np.int32)] * 3, [np.array([6, 7, 8], np.int32)]]
    reward._at_once = 8  # 3 + 2 + 2, then 3 + 2, then 1 + 3
    reward.rewards(prompts, answers, np.ones(4, bool))
    assert [[(len(p), len(a)) for p, a in groups] for groups in seen] == [[(3, 2)], [(3, 1)], [(1, 1)]]
    seen.clear()
    reward._at_once = 9  # 3 + 2 + 2, then 3 + 2 + 1 + 3
    reward.rewards(prompts, answers, np.ones(4, bool))
    assert [[(len(p), len(a)) for p, a in groups] for groups in seen] == [[(3, 3)], [(1, 1)]]
    seen.clear()
    reward._at_once = 13
    reward.rewards(prompts, answers, np.ones(4, bool))
    assert len(seen) == 1


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_a_tokenizer_is_the_same_after_saving_and_with_one_more_token(tmp_path, maker):
    tokenizer = maker()
    other = maker()
    other.add_special_tokens({"pad_token": "<|pad|>"})
    other.save_pretrained(tmp_path)
    loaded = t.AutoTokenizer.from_pretrained(tmp_path)
    again = maker()
    again.save_pretrained(tmp_path / "again")
    assert same_tokenizer(tokenizer, maker())
    assert same_tokenizer(t.AutoTokenizer.from_pretrained(tmp_path / "again"), loaded)
    assert same_tokenizer(tokenizer, loaded)
    assert not same_tokenizer(other, tokenizer), "the reward model does not know a token that can be sampled"


def test_tokenizers_differ_in_vocabulary_in_what_they_put_before_a_text_and_in_their_end():
    tokenizer = llama_like()
    assert not same_tokenizer(tokenizer, gpt2_like())
    assert not same_tokenizer(tokenizer, llama_like(scheme="always"))
    assert not same_tokenizer(word_level(), word_level(("b", "a", "c")))
    other = llama_like()
    other.eos_token = "<unk>"
    assert not same_tokenizer(tokenizer, other)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["post_processor"] = None
    bare = t.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    assert not same_tokenizer(tokenizer, bare)


ANSWERS_TO_READ = ("the answer", "no", "Paris")
TEXTS = {"prompt": "what is", "completions": [" " + text for text in ANSWERS_TO_READ], "ranks": [1, 2, 3]}
LINES = {"prompt": "what is\n", "completions": list(ANSWERS_TO_READ), "ranks": [1, 2, 3]}
CONVERSATIONS = {"prompt": [user("what?")], "completions": [[assistant(text)] for text in ANSWERS_TO_READ], "ranks": [1, 2, 3]}
READ = [
    (row, policy, own) for row in (TEXTS, LINES) for policy in ("gpt2", "qwen", "llama") for own in ("gpt2", "qwen", "llama")
]
READ += [(CONVERSATIONS, policy, own) for policy in ("qwen", "llama") for own in ("qwen", "llama")]


@pytest.mark.parametrize(("row", "policy", "own"), READ)
def test_another_tokenizer_reads_what_its_own_data_loading_would_have_made(tmp_path, row, policy, own):
    policy_tokenizer, tokenizer = MAKERS[policy](), MAKERS[own]()
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model = save(tmp_path / "model", tokenizer)
    path = write_lines(tmp_path / "rows.jsonl", [row])

    def examples(of):
        return load_examples(DataConfiguration(str(path), cache=False), of, purpose="preference").examples

    (sampled,), (expected,) = examples(policy_tokenizer), examples(tokenizer)
    prompts = prompts_of([tuple(row["prompt"]) if row is CONVERSATIONS else row["prompt"]], policy_tokenizer)
    assert prompts[0].ids.tolist() == sampled.prompt.tolist()
    answers = list(sampled.completions)
    answers[0] = answers[0][:-1]  # cut
    reward = opened(tmp_path / "model", policy_tokenizer)
    reward.check(prompts, longest_answer=16)
    assert reward.same_tokens == (policy == own)
    told = f"{tmp_path}/model has another tokenizer than the policy: answers are decoded and encoded anew for it"
    assert (told in reward.notices) == (policy != own)
    given = reward.rewards(prompts, [answers], np.array([False, True, True]))
    read = [ids.tolist() for ids in expected.completions]
    behind = 2 if row is CONVERSATIONS and (policy, own) == ("qwen", "llama") else 1  # that template's space belongs to its end
    read[0] = read[0][:-behind]
    wanted = [own_score(model, [*expected.prompt, *ids]) for ids in read]
    assert given == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert len(set(np.round(wanted, 4))) == 3


def test_another_chat_template_is_obeyed_with_the_same_tokens(tmp_path):
    tokenizer, policy_tokenizer = qwen_like(), qwen_like()
    policy_tokenizer.chat_template = CHATML.replace("assistant\n", "assistant: ")
    model = save(tmp_path, tokenizer)
    reward = opened(tmp_path, policy_tokenizer)
    assert reward.same_tokens
    messages = (user("what?"),)
    talk, plain = prompts_of([messages, "what?"], policy_tokenizer)
    reward.check([plain], longest_answer=4)
    assert reward.notices == ()
    reward.check([plain, talk], longest_answer=4)
    assert reward.notices[0].endswith("has another chat template than the policy: conversations are written anew for it")
    (answer,) = answers_of(["yes"], tokenizer)
    letters = np.array([*tokenizer.convert_tokens_to_ids(["y", "e", "s"]), tokenizer.eos_token_id], np.int32)
    assert letters.tolist() != answer.tolist(), "the same text, as a policy may well write it"
    given = reward.rewards([plain, talk], [[letters], [letters]], np.array([True, True]))
    (own,) = prompts_of([messages], tokenizer)
    assert own.ids.tolist() != talk.ids.tolist()
    expected = [own_score(model, [*plain.ids, *letters]), own_score(model, [*own.ids, *answer])]
    assert given == pytest.approx(expected, rel=1e-4, abs=1e-5)


TAILS = {"gemma": "<|im_end|>\n", "llama 3": "<|im_end|>"}


def two_ends(tail, template=CHATML):
    tokenizer = gemma_like()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.chat_template = template.replace("<|im_end|>\n", tail)
    return tokenizer


@pytest.mark.parametrize("ended", ["<|im_end|>", "<|endoftext|>", "all"])
@pytest.mark.parametrize("policy", ["same", "another template", "another tokenizer"])
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_the_score_of_a_conversations_answer_is_read_where_it_was_trained(tmp_path, tail, policy, ended):
    """Whichever token ended the answer when it was sampled, with the same tokenizer and through text."""
    tokenizer = two_ends(tail)
    policy_tokenizer = (
        two_ends(tail, CHATML.replace("assistant\n", "assistant: ")) if policy == "another template" else two_ends(tail)
    )
    if policy == "another tokenizer":
        policy_tokenizer, ended = llama_like(), "</s>"
    ended = f"{tail}<|endoftext|>" if ended == "all" else ended
    model = save(tmp_path / "model", tokenizer)
    talk = {"prompt": [user("what is")], "completions": [[assistant(text)] for text in ANSWERS_TO_READ], "ranks": [1, 2, 3]}
    path = write_lines(tmp_path / "rows.jsonl", [talk])
    (trained,) = load_examples(DataConfiguration(str(path), cache=False), tokenizer, purpose="preference").examples
    expected = [own_score(model, [*trained.prompt, *ids]) for ids in trained.completions]
    prompts = prompts_of([(user("what is"),)], policy_tokenizer)
    reward = opened(tmp_path / "model", policy_tokenizer)
    reward.check(prompts, longest_answer=16)
    sampled = [policy_tokenizer(text + ended, add_special_tokens=False).input_ids for text in ANSWERS_TO_READ]
    given = reward.rewards(prompts, [[np.array(ids, np.int32) for ids in sampled]], np.ones(3, bool))
    assert given == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len(set(np.round(expected, 4))) == 3


def thinking(template=CHATML, *, special=True):
    tokenizer = qwen_like()
    tokenizer.add_tokens(["<think>", "</think>", "<end>"], special_tokens=special)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("special", [True, False], ids=["special", "not special"])
def test_special_tokens_within_an_answer_reach_a_reward_model_that_reads_text(tmp_path, special):
    tokenizer = thinking()
    model = save(tmp_path / "model", tokenizer)
    policy_tokenizer = thinking(CHATML.replace("assistant\n", "assistant: "), special=special)
    contents = ["<think>red ? no</think>blue", "<think>red ? noblue", "blue"]
    (prompt,) = prompts_of([(user("what?"),)], policy_tokenizer)
    (own,) = prompts_of([(user("what?"),)], tokenizer)
    sampled = [np.array(policy_tokenizer(text + "<|im_end|>").input_ids, np.int32) for text in contents]
    expected = [own_score(model, [*own.ids, *tokenizer(text + "<|im_end|>").input_ids]) for text in contents]
    given = opened(tmp_path / "model", policy_tokenizer).rewards([prompt], [sampled], np.ones(3, bool))
    assert given == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len(set(np.round(expected, 4))) == 3


def test_an_end_that_is_not_flagged_special_is_no_text(tmp_path):
    policy_tokenizer, tokenizer = thinking(special=False), gpt2_like()
    policy_tokenizer.eos_token = "<end>"
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    model = save(tmp_path / "model", tokenizer)
    (prompt,) = prompts_of(["what is"], policy_tokenizer)
    ids = np.array(policy_tokenizer(" blue<end>").input_ids, np.int32)
    assert policy_tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=True) == " blue<end>"
    given = opened(tmp_path / "model", policy_tokenizer).rewards([prompt], [[ids]], np.array([True]))
    expected = own_score(model, [*tokenizer("what is").input_ids, *tokenizer(" blue<|endoftext|>").input_ids])
    assert given == pytest.approx([expected], rel=1e-4, abs=1e-5)


def test_what_the_policys_prompt_opens_is_part_of_the_answer_that_is_read(tmp_path):
    """The policy's template opens a thought that the reward model's data have in their messages."""
    strips = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    policy_tokenizer = thinking(strips.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"))
    tokenizer = thinking()
    model = save(tmp_path / "model", tokenizer)
    (prompt,) = prompts_of([(user("what?"),)], policy_tokenizer)
    (own,) = prompts_of([(user("what?"),)], tokenizer)
    assert policy_tokenizer.decode(prompt.ids).endswith("<think>\n")
    ids = np.array(policy_tokenizer("red</think>blue<|im_end|>").input_ids, np.int32)
    given = opened(tmp_path / "model", policy_tokenizer).rewards([prompt], [[ids]], np.array([True]))
    expected = own_score(model, [*own.ids, *tokenizer("<think>\nred</think>blue<|im_end|>").input_ids])
    assert given == pytest.approx([expected], rel=1e-4, abs=1e-5)


def test_odd_answers_of_another_tokenizer_are_scored_all_the_same(tmp_path):
    tokenizer = word_level()
    model = save(tmp_path, tokenizer)
    policy_tokenizer = gpt2_like()
    prompts = prompts_of(["what is"], policy_tokenizer)
    answers = answers_of([" yes <eos> no", " yes", ""], policy_tokenizer)
    reward = opened(tmp_path, policy_tokenizer)
    given = reward.rewards(prompts, [[answers[0], answers[1], answers[2]]], np.array([True, True, True]))
    ids = tokenizer("what is yes").input_ids
    assert given[0] == given[1] == pytest.approx(own_score(model, [*ids, 1]), rel=1e-4), "nothing behind an end is read"
    assert given[2] == pytest.approx(own_score(model, [*ids[:2], 1]), rel=1e-4)
    unfinished = reward.rewards(prompts, [[np.array(policy_tokenizer(" ").input_ids, np.int32)]], np.array([False]))
    assert unfinished[0] == pytest.approx(given[2], rel=1e-4), "where no text is left, the end is read"


def test_prompts_are_not_shared_where_that_is_not_exact_and_that_is_said(tmp_path):
    tokenizer = word_level()
    model = save(tmp_path, tokenizer, "mistral", sliding_window=4)
    reward = opened(tmp_path, tokenizer)
    prompts = prompts_of(PROMPTS, tokenizer)
    reward.check(prompts, longest_answer=6)
    assert not reward.likelihood.shared
    assert reward.notices[0].startswith(f"{tmp_path}: prompts are computed once per answer, which is slower: mistral")
    answers = [answers_of(own, tokenizer) for own in ANSWERS]
    expected = [own_score(model, [*p.ids, *ids]) for p, own in zip(prompts, answers, strict=True) for ids in own]
    assert reward.rewards(prompts, answers, np.ones(6, bool)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    unchecked = opened(tmp_path, tokenizer)
    unchecked.rewards(prompts, answers, np.ones(6, bool))
    assert unchecked.notices == reward.notices
    assert not opened(tmp_path, tokenizer, share_prompts=False).likelihood.shared


def test_too_few_positions_are_a_sentence_before_training_and_while_it_goes_on(tmp_path):
    tokenizer = word_level()
    save(tmp_path, tokenizer, "gpt2", n_positions=8)
    prompts = prompts_of(["a b c", "d"], tokenizer)
    reward = opened(tmp_path, tokenizer)
    reward.check(prompts, longest_answer=5)
    with pytest.raises(UsageError, match=f"{tmp_path}: the longest sequence has 9 tokens, and the model has 8 positions"):
        reward.check(prompts, longest_answer=6)
    reward = opened(tmp_path, gpt2_like())
    prompts = prompts_of(["a b c", "d"], gpt2_like())
    reward.check(prompts, longest_answer=4)
    many = answers_of([" a", " a a a a a a a a"], gpt2_like())
    with pytest.raises(
        RunError,
        match=r"an answer to the prompt of row 11 \('d'\) cannot be scored: .* the longest sequence has 10 tokens, and",
    ):
        reward.rewards(prompts, [[many[0]], [many[1], many[1]]], np.ones(3, bool))


def test_a_score_that_is_not_finite_names_the_prompt(tmp_path):
    tokenizer = word_level()
    save(tmp_path, tokenizer)
    reward = opened(tmp_path, tokenizer)
    prompts = prompts_of(["a", "b", "c"], tokenizer)
    answers = [answers_of(own, tokenizer) for own in (["a", "b"], ["b"], ["d", "e"])]
    reward.rewards(prompts, answers, np.ones(5, bool))
    with torch.no_grad():
        reward.likelihood.model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("d")] = torch.nan
    with pytest.raises(RunError, match=r"gives nan for an answer to the prompt of row 12 \('c'\)"):
        reward.rewards(prompts, answers, np.ones(5, bool))


def test_prompts_that_the_other_tokenizer_cannot_read_are_refused(tmp_path):
    policy_tokenizer = qwen_like()
    save(tmp_path / "plain", word_level())
    prompts = prompts_of([(user("what?"),)], policy_tokenizer)
    with pytest.raises(
        UsageError, match=r"plain cannot read the prompts: these data are conversations, and the tokenizer has no"
    ):
        opened(tmp_path / "plain", policy_tokenizer).check(prompts, longest_answer=3)
    tokenizer = llama_like()
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    save(tmp_path / "strict", tokenizer)
    prompts = prompts_of([(user("what?"),), ({"role": "system", "content": "be"}, user("a"))], policy_tokenizer)
    with pytest.raises(UsageError, match=r"strict cannot read all prompts: the chat template refuses it: .* \(row 11\)"):
        opened(tmp_path / "strict", policy_tokenizer).check(prompts, longest_answer=3)
    bare = word_level()
    model = save(tmp_path / "bare", bare)
    reward = ModelReward(Likelihood(model), bare, policy_tokenizer, name="bare")
    reward._encoder.eos = None
    with pytest.raises(UsageError, match="the tokenizer of bare has no EOS"):
        reward.check(prompts_of(["what"], policy_tokenizer), longest_answer=3)


def test_a_run_is_named_in_place_of_its_model(tmp_path):
    tokenizer = word_level()
    save(tmp_path / "run" / "model", tokenizer)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"method": "reward"}))
    reward = opened(tmp_path / "run", tokenizer)
    assert reward.name == str(tmp_path / "run" / "model")
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.json").write_text(json.dumps({"method": "reward"}))
    with pytest.raises(UsageError, match=r"stopped is a run that holds no model: it was stopped before"):
        opened(tmp_path / "stopped", tokenizer)


def test_what_is_no_reward_model_is_refused_by_the_options_name(tmp_path):
    tokenizer = word_level()
    language_model().save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(UsageError, match=r"^--reward .*policy is a language model, LlamaForCausalLM, without a reward head"):
        opened(tmp_path / "policy", tokenizer)
    with pytest.raises(UsageError, match=r"^--reward /no/such/folder does not exist"):
        opened("/no/such/folder", tokenizer)


def test_a_folder_with_a_colon_in_its_name_is_a_model(tmp_path):
    save(tmp_path / "a:b", word_level())
    assert isinstance(opened(tmp_path / "a:b", word_level()), ModelReward)


def test_only_a_reward_model_with_code_of_its_own_is_trusted_with_it(tmp_path):
    save(tmp_path, word_level())
    settings = ModelConfiguration("the policy", trust_remote_code=True, gradient_checkpointing=True)
    assert isinstance(open_reward(str(tmp_path), word_level(), settings=settings), ModelReward)
