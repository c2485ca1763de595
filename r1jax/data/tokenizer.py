"""Text to token ids and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from r1jax.config import ConfigError, Text

PAD, END = "<|pad|>", "<|end|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A ``tokenizers.Tokenizer`` and what its companion files say. Adds no token that the text does not hold."""

    backend: tokenizers.Tokenizer
    end_ids: tuple[int, ...] = ()
    """Tokens that end an answer: every end token of the tokenizer's, the generation's and the model's config. The first ends a
    training target."""
    chat_template: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    """``tokenizer_config.json`` as it was read."""
    generation: dict[str, Any] = field(default_factory=dict)
    """``generation_config.json`` as it was read: what the model's makers sample with."""

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Bytes that are not UTF-8 become U+FFFD. ``skip_special`` leaves out control tokens; tags such as ``<think>`` stay."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id."""
        return self.backend.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.vocabulary.values()) + 1

    @cached_property
    def special(self) -> dict[str, str]:
        """The text of ``bos_token``, ``eos_token`` and the like, where there are such."""
        named = {key: _content(value) for key, value in self.config.items() if key.endswith("_token")}
        return {key: value for key, value in named.items() if isinstance(value, str)}

    @cached_property
    def prefix(self) -> str:
        """The control tokens that this tokenizer's model expects before a plain text, usually ``bos_token`` or nothing."""
        if self.config.get("add_bos_token"):
            return self.special.get("bos_token", "")
        plain, full = self.encode("a"), self.backend.encode("a", add_special_tokens=True).ids
        return self.decode(full[: full.index(plain[0])]) if plain and plain[0] in full else ""

    def save(self, directory: str | Path) -> None:
        """Writes the files that ``load`` and transformers read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(directory / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        if self.end_ids:
            config.setdefault("eos_token", self.backend.id_to_token(self.end_ids[0]))
        _write(directory / "tokenizer_config.json", config)
        _write(directory / "generation_config.json", {**self.generation, "eos_token_id": list(self.end_ids)})


def load(text: Text) -> Tokenizer:
    """The tokenizer that ``text`` names; ``auto`` names none, for it comes with the weights.

    Raises:
      ConfigError: there is none, or its files cannot be read.
    """
    return byte_tokenizer() if text.tokenizer == "bytes" else from_files(Path(text.tokenizer).expanduser())


def from_files(path: Path) -> Tokenizer:
    """A tokenizer from a ``tokenizer.json`` or the directory that holds one, with the configs beside it."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"tokenizer: there is no file {file}; name a tokenizer.json or a directory that holds one")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # the library raises nothing narrower
        raise ConfigError(f"tokenizer: {file} is not a tokenizer.json: {' '.join(str(e).split())}") from e
    backend.no_truncation()
    backend.no_padding()
    names = ("tokenizer_config.json", "generation_config.json", "config.json")
    config, generation, model = (_read(file.with_name(name)) for name in names)
    ends = [backend.token_to_id(token)] if isinstance(token := _content(config.get("eos_token")), str) else []
    for value in (generation.get("eos_token_id"), model.get("eos_token_id")):
        ends += value if isinstance(value, list) else [value]
    end_ids = tuple(dict.fromkeys(i for i in ends if i is not None))
    return Tokenizer(backend, end_ids, _chat_template(file.parent, config), config, generation)


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte, with the tags and the control tokens as single tokens: 262 ids, padding 0."""
    names = (PAD, END, *TAGS)
    vocab = {name: i for i, name in enumerate(names)}
    vocab |= {character: len(names) + byte for byte, character in enumerate(_byte_characters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (PAD, END)])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in TAGS])
    return Tokenizer(backend, end_ids=(vocab[END],), config={"eos_token": END, "pad_token": PAD})


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table): a printable byte of Latin-1
    stands for itself, the others for U+0100 and the characters after it."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template") or _read(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        return next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ConfigError(f"{path} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__}, not an object")
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
