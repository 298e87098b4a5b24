"""Shared = separate, in values and gradients; the oracle is the model itself, one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surefoot.alignment.likelihood.attention import SHARED_ATTENTION
from surefoot.alignment.likelihood.likelihood import Likelihood
from surefoot.alignment.likelihood.packing import Group, pack
from surefoot.alignment.models.adapters import add_adapter
from surefoot.alignment.models.configuration import AdapterConfiguration
from surefoot.errors import UsageError
from tests.alignment.likelihood.architectures import MORE_THAN_A_HEAD, SEPARATE, VOCABULARY, build
from tests.alignment.models.tiny import FAMILIES

torch.set_num_threads(1)


def words(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(3, VOCABULARY, count).astype(np.int32)


def groups_of(*shape: tuple[int, tuple[int, ...]]) -> list[Group]:
    rng = np.random.default_rng(0)
    return [(words(rng, prompt), [words(rng, n) for n in answers]) for prompt, answers in shape]


UNEVEN = groups_of((9, (5, 1, 7)), (4, (3, 6)), (12, (2,)))
EVEN = groups_of((8, (5, 5)), (8, (5, 5)))


def one_by_one(model, groups):
    """log π of every completion token by the model's own forward, each sequence alone, without padding or packing."""
    tokens = []
    for prompt, answers in groups:
        for answer in answers:
            ids = torch.tensor(np.concatenate([prompt, answer]).astype(np.int64))[None]
            distribution = model(ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
            tokens.append(distribution.gather(1, ids[0, len(prompt) :, None])[:, 0])
    return tokens


def by_answer(result):
    return [result.tokens[result.completion_of == i] for i in range(result.count)]


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weighted(tokens):
    """A scalar in which every token has a weight of its own."""
    flat = torch.cat(list(tokens))
    return (flat * torch.linspace(-1, 2, len(flat), dtype=flat.dtype)).sum()


def assert_equal_to_the_model(model, likelihood, groups, tolerance=2e-5):
    mine = by_answer(likelihood.completions(groups))
    of_mine = gradients(model, weighted(mine))
    likelihood.release()
    theirs = one_by_one(model, groups)
    of_theirs = gradients(model, weighted(theirs))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    largest = max(g.abs().max() for g in of_theirs.values())
    assert of_mine.keys() == of_theirs.keys()
    for name, gradient in of_theirs.items():
        assert (of_mine[name] - gradient).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("groups", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.parametrize("name", FAMILIES)
def test_shared_prompts_give_the_values_and_gradients_of_separate_forwards(name, groups):
    model = build(name)
    likelihood = Likelihood(model)
    assert likelihood.check(groups) is None
    assert likelihood.shared
    assert_equal_to_the_model(model, likelihood, groups)


@pytest.mark.parametrize("name", [*SEPARATE, *MORE_THAN_A_HEAD])
def test_architectures_that_need_the_slow_way_are_found_said_and_right_all_the_same(name):
    model = build(name)
    likelihood = Likelihood(model)
    notice = likelihood.check(UNEVEN)
    assert notice is not None
    assert ("cannot share" if name in SEPARATE else "whole logits") in notice
    assert ("a sliding window of 6 tokens" in notice) == (name == "mistral with a window")
    assert not likelihood.shared
    assert_equal_to_the_model(model, likelihood, UNEVEN)


def test_a_head_of_half_the_bits_reads_hidden_states_of_more():
    model = build("mamba", dtype=torch.bfloat16)
    assert model.base_model(torch.tensor([[3, 4]])).last_hidden_state.dtype == torch.float32
    likelihood = Likelihood(model)
    likelihood.check(UNEVEN)
    assert likelihood.plain_head
    found = likelihood.completions(UNEVEN)
    found.sums().sum().backward()
    for number, (prompt, answer) in enumerate((prompt, answer) for prompt, answers in UNEVEN for answer in answers):
        logits = model(torch.from_numpy(np.concatenate([prompt, answer])).long()[None]).logits[0, len(prompt) - 1 : -1].float()
        wanted = logits.log_softmax(-1).gather(1, torch.from_numpy(answer).long()[:, None])[:, 0]
        torch.testing.assert_close(found.tokens[found.completion_of == number], wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("error", [NotImplementedError(), IndexError("too many\nindices"), AssertionError()])
def test_whatever_a_model_makes_of_shared_prompts_its_own_way_is_left(error, monkeypatch):
    def fail(*_, **__):
        raise error

    model = build("llama")
    likelihood = Likelihood(model)
    monkeypatch.setattr(likelihood, "packed_row", fail)
    assert f"({str(error).replace(chr(10), ' ') or type(error).__name__})" in likelihood.check(UNEVEN)
    assert_equal_to_the_model(model, likelihood, UNEVEN)


def test_a_model_that_fails_altogether_is_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise IndexError("3 is out\nof bounds")

    model = build("llama")
    monkeypatch.setattr(type(model.model), "forward", fail)
    with pytest.raises(UsageError, match=r"^--model llama cannot compute a prompt with its answer: 3 is out of bounds$"):
        Likelihood(model).check(UNEVEN)


def test_a_window_matters_only_where_something_is_longer():
    short = groups_of((3, (2, 3)), (2, (1,)))
    model = build("mistral with a window")
    likelihood = Likelihood(model)
    assert likelihood.check(short) is None
    assert_equal_to_the_model(model, likelihood, short)


def test_without_sharing_the_values_are_the_same():
    model = build("llama")
    likelihood = Likelihood(model, share_prompts=False)
    assert likelihood.check(UNEVEN) is None
    assert_equal_to_the_model(model, likelihood, UNEVEN)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shape=st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=4),
    name=st.sampled_from(["llama", "gpt2"]),
)
def test_any_lengths_and_any_number_of_answers(shape, name):
    groups = groups_of(*((prompt, tuple(answers)) for prompt, answers in shape))
    model = build(name, dtype=torch.float64)
    shared, separate = Likelihood(model), Likelihood(model, share_prompts=False)
    shared._share(True)
    mine = by_answer(shared.completions(groups))
    of_mine = gradients(model, weighted(mine))
    shared.release()
    theirs = by_answer(separate.completions(groups))
    of_theirs = gradients(model, weighted(theirs))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for key, gradient in of_theirs.items():
        torch.testing.assert_close(of_mine[key], gradient, rtol=1e-4, atol=1e-5)


def test_three_tokens_by_hand():
    """Prompt (3), answer (4, 2): log π is that of 4 after 3, and of 2 after 3 4."""
    model = build("llama")
    groups = [(np.array([3], np.int32), [np.array([4, 2], np.int32)])]
    tokens = Likelihood(model).completions(groups).tokens
    logits = model(torch.tensor([[3, 4, 2]])).logits[0]
    by_hand = torch.stack([logits[0].log_softmax(-1)[4], logits[1].log_softmax(-1)[2]])
    torch.testing.assert_close(tokens, by_hand, rtol=0, atol=1e-5)


def test_a_batch_of_one_is_the_batch_of_many():
    model = build("qwen2")
    likelihood = Likelihood(model)
    together = likelihood.completions(UNEVEN).sums()
    apart = torch.cat([likelihood.completions([group]).sums() for group in UNEVEN])
    torch.testing.assert_close(together, apart, rtol=0, atol=2e-5)


def test_what_the_padding_token_is_changes_nothing():
    model = build("llama")
    likelihood = Likelihood(model, share_prompts=False)
    before = likelihood.completions(UNEVEN).sums()
    model.config.pad_token_id = int(UNEVEN[0][0][3])  # a real token of a prompt
    assert torch.equal(likelihood.completions(UNEVEN).sums(), before)


def test_slots_that_nobody_reads_may_hold_anything(monkeypatch):
    """The slots behind a shorter sequence are filled with a real token; filled with NaN or ±1e3, no bit changes."""
    from surefoot.alignment.likelihood import attention

    model = build("llama")
    likelihood = Likelihood(model)

    def run():
        tokens = likelihood.completions(UNEVEN).tokens
        return tokens.detach(), gradients(model, weighted([tokens]))

    plain, of_plain = run()
    ordinary = attention.side_by_side

    for poison in (1e3, -1e3):

        def poisoned(tokens, spans, poison=poison):
            laid = ordinary(tokens, spans)
            real = torch.zeros(spans.count * spans.longest, dtype=torch.bool)
            real[spans.back] = True
            there = real.unflatten(0, (spans.count, spans.longest))[:, None, :, None]
            return torch.where(there, laid, torch.full_like(laid, poison))

        monkeypatch.setattr(attention, "side_by_side", poisoned)
        other, of_other = run()
        assert torch.equal(plain, other)
        for name, gradient in of_plain.items():
            assert torch.equal(gradient, of_other[name]), name


def test_scores_are_the_models_own():
    model = build("llama", reward=True)
    likelihood = Likelihood(model)
    assert likelihood.check(UNEVEN) is None
    mine = likelihood.scores(UNEVEN)
    likelihood.release()
    theirs = torch.stack(
        [
            model(torch.tensor(np.concatenate([prompt, answer]).astype(np.int64))[None]).logits[0, 0]
            for prompt, answers in UNEVEN
            for answer in answers
        ]
    )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)


def test_an_adapter_stays_active():
    model = build("llama")
    adapted = add_adapter(model, AdapterConfiguration(lora_rank=4), seed=1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    likelihood = Likelihood(adapted)
    assert likelihood.check(UNEVEN) is None
    assert_equal_to_the_model(adapted, likelihood, UNEVEN)


def test_gradient_checkpointing_changes_nothing():
    model = build("llama")
    likelihood = Likelihood(model)
    plain = gradients(model, weighted(by_answer(likelihood.completions(UNEVEN))))
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, weighted(by_answer(likelihood.completions(UNEVEN))))
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-6)


def test_each_prompt_and_each_fed_token_stands_in_the_row_once():
    packed = pack(UNEVEN, device=torch.device("cpu"), feed_last=False)
    prompts = np.concatenate([prompt for prompt, _ in UNEVEN])
    answers = np.concatenate([answer[:-1] for _, answers in UNEVEN for answer in answers])
    assert packed.input_ids[0].tolist() == [*prompts, *answers]
    assert packed.position_ids[0, 25:29].tolist() == [9, 10, 11, 12]  # the first answer's, behind its prompt of nine
    assert len(packed.scored_rows) == 24 - 2 - 1  # 24 tokens; three answers share one predictor, two another
    assert packed.attention_pairs == sum(
        len(p) * (len(p) + 1) // 2 + sum((len(a) - 1) * len(a) // 2 + (len(a) - 1) * len(p) for a in c) for p, c in UNEVEN
    )


def test_the_attention_without_a_layout_is_the_models_own():
    model = build("llama")
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    before = model(ids, attention_mask=mask).logits
    model.set_attn_implementation(SHARED_ATTENTION)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask.bool()], before[mask.bool()], rtol=0, atol=1e-6)


def test_a_score_that_is_no_linear_layer_is_refused():
    model = build("llama", reward=True)
    ordinary = model.forward
    likelihood = Likelihood(model)

    def squashed(**inputs):
        output = ordinary(**inputs)
        output.logits = torch.tanh(output.logits) + 1
        return output

    model.forward = squashed
    with pytest.raises(UsageError, match="linear layer"):
        likelihood.check(UNEVEN)
