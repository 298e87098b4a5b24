"""Small tokenizers of the kinds that models have, built without downloads."""

from __future__ import annotations

from functools import cache
from string import ascii_letters, digits, punctuation

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "The capital of France is Paris.",
    "What is the answer? The answer is yes, and no is not an answer.",
    "\n\nHuman: hello, how are you?\n\nAssistant: hello! I am good, thank you.",
    "Tell me a story. Once upon a time there was a good dog and a bad cat.",
)
WORDS = ("a", "b", "c", "d", "e", "f", "g", "h", "good", "bad", "yes", "no", "the", "answer", "is", "what", "?", ".")

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCTIONS = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant speak') }}{% endif %}{% endfor %}"
)


def word_level(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word: <pad> 0, <eos> 1, <unk> 2, then the words; nothing is added to a text, and there is no BOS."""
    names = ("<pad>", "<eos>", "<unk>")
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate((*names, *words))}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(names))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@cache
def _byte_level(special: tuple[str, ...], add_prefix_space: bool) -> str:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend.to_str()


def gpt2_like(*, add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE; <|endoftext|> is BOS and EOS, nothing is added to a text, and there is no pad token."""
    backend = Tokenizer.from_str(_byte_level(("<|endoftext|>",), add_prefix_space))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def qwen_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML; <|im_end|> is EOS, <|endoftext|> pads, and there is no BOS."""
    backend = Tokenizer.from_str(_byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), False))
    backend.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def gemma_like() -> PreTrainedTokenizerFast:
    """Two ends, as Gemma's and Llama 3's: a turn ends with <|im_end|> and a line's end, a text with <|endoftext|>, which is EOS."""
    tokenizer = qwen_like()
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


@cache
def _pieces() -> str:
    backend = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=list(ascii_letters + digits + punctuation + "▁"),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend.to_str()


def llama_like(*, legacy: bool = False, scheme: str = "first") -> PreTrainedTokenizerFast:
    """BPE of SentencePiece's kind, with byte fallback: <s> 1 is put before a text, </s> 2 is EOS, no pad token.

    Args:
        legacy: the space before the first word is put by a normaliser, as in the first Llama's files, not by Metaspace.
        scheme: where Metaspace puts it: first, always or never.
    """
    trained = Tokenizer.from_str(_pieces())
    backend = Tokenizer(trained.model)
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<unk>", "<s>", "</s>")])
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=INSTRUCTIONS
    )
