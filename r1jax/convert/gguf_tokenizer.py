"""The tokenizer inside a GGUF file: byte-level BPE (GPT-2's, Radford et al. 2019), to a ``tokenizer.json`` and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

from r1jax.config import ConfigError
from r1jax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types: words, markup that plain decoding hides, literal pieces that are never split, ids without a token."""

NAMED = {
    "bos": "tokenizer.ggml.bos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
ENDS = {
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
}
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>")
"""End an answer even where the metadata names another end token, as in llama.cpp: base and chat models use different ones."""


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _tiktoken(digits: str) -> list[dict[str, Any]]:
    """GPT-4's pattern, which Llama 3 and Qwen share but for how many digits go together."""
    contractions, words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return [_split(f"{contractions}|{words}|{digits}|{rest}"), _bytes(use_regex=False)]


_NFC = {"type": "NFC"}
_ONE_DIGIT = [{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)]
_DEEPSEEK = [
    _split(r"\p{N}{1,3}"),
    _split("[一-龥\u3040-ゟ゠-ヿ]+"),
    _split(
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
        "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    ),
    _bytes(use_regex=False),
]
# llama.cpp's name -> (normalizer, pre-tokenizers, whether a word that is in the vocabulary is taken before any merge), as the
# tokenizer.json that the name stands for has them. Of two names with the same entry the first is written.
PRE: dict[str, tuple[dict | None, list[dict[str, Any]], bool]] = {
    "smollm": (None, _ONE_DIGIT, False),
    "starcoder": (None, _ONE_DIGIT, False),
    "gpt-2": (None, [_bytes(use_regex=True)], False),
    "llama-bpe": (None, _tiktoken(r"\p{N}{1,3}"), True),
    "llama3": (None, _tiktoken(r"\p{N}{1,3}"), True),
    "llama-v3": (None, _tiktoken(r"\p{N}{1,3}"), True),
    "qwen2": (_NFC, _tiktoken(r"\p{N}"), False),
    "deepseek-r1-qwen": (_NFC, _tiktoken(r"\p{N}"), False),
    "deepseek-v3": (None, _DEEPSEEK, False),
}
_ADDS_BOS = ("llama-bpe", "llama3", "llama-v3")  # where tokenizer.ggml.add_bos_token does not say


def build(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer with its end ids, chat template and named tokens.

    Raises:
      KeyError: a field is absent.
      ConfigError: the file holds another kind of tokenizer, or lists that do not fit each other.
    """
    kind, pre = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if kind != "gpt2":
        raise ConfigError(f"tokenizer {kind!r} is not supported; 'gpt2' (byte-level BPE) is")
    if pre not in PRE:
        raise ConfigError(f"pre-tokenizer {pre!r} is not supported; {', '.join(PRE)} are")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    if len(types) != len(tokens):
        raise ConfigError(f"there are {len(tokens)} tokens and {len(types)} token types")
    normalizer, steps, ignore_merges = PRE[pre]
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    ids = {field: metadata[key] for field, key in (NAMED | ENDS).items() if metadata.get(key, len(tokens)) < len(tokens)}
    named = {field: tokens[i] for field, i in ids.items()}
    backend = {
        "version": "1.0",
        "added_tokens": [_added(i, tokens[i], types[i]) for i in vocab.values() if types[i] in (CONTROL, USER_DEFINED)],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": _bytes(use_regex=True),
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
    if metadata.get("tokenizer.ggml.add_bos_token", pre in _ADDS_BOS) and "bos" in named:
        backend["post_processor"] = _begin_with(named["bos"], ids["bos"])
    try:
        built = Backend.from_str(json.dumps(backend))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"the tokenizer cannot be built: {' '.join(str(error).split())}") from error
    ends = [ids[field] for field in ENDS if field in ids] + [vocab[token] for token in END_TOKENS if token in vocab]
    config = {f"{field}_token": named[field] for field in (*NAMED, "eos") if field in named}
    return Tokenizer(built, tuple(dict.fromkeys(ends)), metadata.get("tokenizer.chat_template"), config)


def write(writer: GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Adds the metadata from which llama.cpp and ``build`` make this tokenizer.

    Args:
      vocab_size: rows of the embedding; those beyond the tokenizer's tokens are marked unused.

    Raises:
      ConfigError: llama.cpp has no name for how this tokenizer splits text, or no field for something else of it.
    """
    backend = json.loads(tokenizer.backend.to_str())
    pre = _name_of_splitting(backend)
    added = {entry["id"]: entry for entry in backend["added_tokens"]}
    if strips := [entry["content"] for entry in added.values() if any(map(entry.get, ("lstrip", "rstrip", "single_word")))]:
        raise ConfigError(f"token {strips[0]!r} takes in the space beside it or is a whole word only; GGUF cannot say so")
    texts = {i: token for token, i in backend["model"]["vocab"].items()} | {i: entry["content"] for i, entry in added.items()}
    if max(texts) >= vocab_size:
        raise ConfigError(f"the tokenizer has an id {max(texts)}, beyond the {vocab_size} rows of the model's embedding")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types([_type(added.get(i)) if i in texts else UNUSED for i in range(vocab_size)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in backend["model"]["merges"]])
    _write_named(writer, tokenizer, texts)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _write_named(writer: GGUFWriter, tokenizer: Tokenizer, texts: dict[int, str]) -> None:
    if not tokenizer.end_ids:
        raise ConfigError("the tokenizer names no token that ends an answer, and llama.cpp would take the id 11 for it")
    first, *others = tokenizer.end_ids
    ends = [first, *(i for i in others if texts.get(i) not in END_TOKENS)]
    if len(ends) > len(ENDS):
        raise ConfigError(f"a GGUF file has room for {len(ENDS)} end tokens, not for {[texts.get(i, i) for i in ends]}")
    bos = tokenizer.special.get("bos_token") or tokenizer.prefix
    if tokenizer.prefix not in ("", bos):
        raise ConfigError(f"the tokenizer begins a text with {tokenizer.prefix!r}; a GGUF file can only say {bos!r}")
    named = {"bos": bos} | {field: tokenizer.special.get(f"{field}_token") for field in ("unk", "pad")}
    ids = {field: tokenizer.backend.token_to_id(token) for field, token in named.items() if token}
    for field, i in (ids | dict(zip(ENDS, ends, strict=False))).items():
        if i is not None:
            writer.add_uint32((NAMED | ENDS)[field], i)
    writer.add_add_bos_token(tokenizer.prefix != "")


def _name_of_splitting(backend: dict[str, Any]) -> str:
    """llama.cpp's name of how a ``tokenizer.json`` splits text."""
    model, splitter, normalizer = backend["model"], backend["pre_tokenizer"] or {"type": None}, backend["normalizer"]
    extras = ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(map(model.get, extras)):
        raise ConfigError(f"a tokenizer of the kind {model['type']} cannot be written to GGUF; byte-level BPE can")
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    if normalizer and normalizer.get("normalizers") == []:
        normalizer = None
    found = (normalizer, [_without_offsets(step) for step in steps], bool(model.get("ignore_merges")))
    for name, (its, its_steps, ignore_merges) in PRE.items():
        if found == (its, [_without_offsets(step) for step in its_steps], ignore_merges):
            return name
    kinds = "+".join(step["type"] or "none" for step in steps)
    raise ConfigError(f"a tokenizer that splits text by {kinds} cannot be written to GGUF; those of {', '.join(PRE)} can")


def _without_offsets(step: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name != "trim_offsets"}


def _type(added: dict[str, Any] | None) -> int:
    if added is None:
        return NORMAL
    text = added["content"]
    looks_so = text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))  # llama.cpp's converter goes by this too
    return CONTROL if added["special"] or looks_so else USER_DEFINED


def _added(i: int, token: str, kind: int) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"id": i, "content": token, **flags, "special": kind == CONTROL}


def _begin_with(token: str, i: int) -> dict[str, Any]:
    begin, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    special = {token: {"id": token, "ids": [i], "tokens": [token]}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text, second], "special_tokens": special}
