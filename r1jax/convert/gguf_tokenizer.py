"""The tokenizer inside a GGUF file: byte-level BPE (GPT-2's, Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL, USER_DEFINED = 3, 4
"""Token types of the format: markup that plain decoding hides, and literal pieces that are never split."""

END_FIELDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""End an answer even where the metadata names another end token: base and chat models use different ones."""


def build(metadata: dict[str, Any]) -> tuple[Tokenizer, tuple[int, ...]]:
    """(tokenizer, ids that end an answer). Adds no token at either end of a text: the chat template writes them.

    Raises:
      KeyError: a field is absent.
      ValueError: the file holds another kind of tokenizer.
    """
    kind, pre = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if kind != "gpt2":
        raise ValueError(f"tokenizer {kind!r} is not supported; 'gpt2' (byte-level BPE) is")
    if pre != "smollm":
        raise ValueError(f"pre-tokenizer {pre!r} is not supported; 'smollm' is")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens(special)
    literal = [AddedToken(t, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    tokenizer.add_tokens(literal)
    ends = [metadata[name] for name in END_FIELDS if name in metadata]
    ends += [vocab[token] for token in END_TOKENS if token in vocab]
    return tokenizer, tuple(dict.fromkeys(int(i) for i in ends))
