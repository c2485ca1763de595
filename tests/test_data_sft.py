import pytest

from r1jax.config import ConfigError, Source, Text
from r1jax.data.sft import encode, take
from r1jax.data.sources import Mixture
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer, byte_tokenizer

BYTES = byte_tokenizer()


def byte_ids(text):
    return [6 + b for b in text.encode()]


def test_completion_and_end_token_are_trained():
    example = encode({"prompt": "1+1=", "completion": "<think>é</think>2"}, Template(Text(template="none"), BYTES), BYTES)
    assert example.tokens.tolist() == [*byte_ids("1+1="), 2, *byte_ids("é"), 3, *byte_ids("2"), 1]
    assert example.trained.tolist() == [False] * 4 + [True] * 6


def test_the_prefill_is_the_prompts():
    template = Template(Text(template="r1"), BYTES)
    example = encode({"prompt": "hi", "completion": "<think>\nso</think>ok"}, template, BYTES)
    assert BYTES.decode(example.tokens[~example.trained]) == "<｜User｜>hi<｜Assistant｜><think>\n"
    assert BYTES.decode(example.tokens[example.trained]) == "so</think>ok<|end|>"
    with pytest.raises(ConfigError, match="lacks the prefill"):
        encode({"prompt": "hi", "completion": "ok"}, template, BYTES)


def test_what_cannot_be_trained_on():
    template = Template(Text(template="none"), BYTES)
    with pytest.raises(ConfigError, match="no 'completion'"):
        encode({"prompt": "hi", "source": "s"}, template, BYTES)
    with pytest.raises(ConfigError, match="no end token"):
        encode({"prompt": "hi", "completion": "x"}, template, Tokenizer(BYTES.backend))


def test_rows_that_are_too_long_are_left_out_and_counted():
    source = Source(name="s")
    rows = [{"prompt": "p", "completion": "x" * (20 if i % 4 == 0 else 3), "answer": i} for i in range(40)]
    mixture, template = Mixture([(source, rows)], seed=0), Template(Text(template="none"), BYTES)
    first, cursor, out = take(mixture, 0, 20, template, BYTES, 5)
    assert len(first) == 20 and all(len(e.tokens) == 5 for e in first) and cursor == 20 + out and out > 0
    second, cursor, more = take(mixture, cursor, 10, template, BYTES, 5)
    assert (cursor, out + more) == (40, 10) and len(second) == 10
    with pytest.raises(ConfigError, match="longer than 4 tokens"):
        take(mixture, 0, 1, template, BYTES, 4)
