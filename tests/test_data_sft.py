import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from r1jax.config import ConfigError, Source, Text
from r1jax.data.readable import in_r1_style
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


def test_a_sampled_answer_is_trained_behind_the_prefill_of_r1s_template():
    """One of R1-Zero's form in R1's style, and one that was sampled behind the prefill: thought and answer are trained on."""
    template = Template(Text(template="r1"), BYTES)
    prefill = template.render("hi").prefill
    zero = in_r1_style("<think> so\n\nand so </think> <answer> ok </answer>")
    for completion in (zero, f"{prefill}so\n\nand so\n</think>\n\nok"):
        example = encode({"prompt": "hi", "completion": completion}, template, BYTES)
        assert BYTES.decode(example.tokens[~example.trained]) == "<｜User｜>hi<｜Assistant｜><think>\n"
        assert BYTES.decode(example.tokens[example.trained]) == "so\n\nand so\n</think>\n\nok<|end|>"


THOUGHTLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_that_deletes_thoughts_deletes_none_that_is_trained():
    prompt = [
        {"role": "user", "content": " 1+1? "},
        {"role": "assistant", "content": "<think>\nso</think>2"},
        {"role": "user", "content": "2+2?"},
    ]
    row = {"prompt": prompt, "completion": "<think>\nhm</think>4"}
    example = encode(row, Template(Text(template=THOUGHTLESS), BYTES), BYTES)
    assert BYTES.decode(example.tokens[~example.trained]) == "user: 1+1?\nassistant: 2\nuser: 2+2?\nassistant: "
    assert BYTES.decode(example.tokens[example.trained]) == "<think>\nhm</think>4<|end|>"


@pytest.mark.parametrize(
    ("text", "prompt", "said"),
    [
        (Text(template="Q: {{ question }} A:"), "1+1?", "the template leaves out the user message '1\\+1\\?'"),
        (Text(template="{{ messages[-1].content }}", system="Be brief."), "1+1?", "leaves out the system message 'Be brief.'"),
        (Text(template=THOUGHTLESS), "why </think>?", "leaves out the user message"),
    ],
)
def test_a_template_that_loses_text_is_refused(text, prompt, said):
    with pytest.raises(ConfigError, match=said):
        encode({"prompt": prompt, "completion": "2", "source": "s"}, Template(text, BYTES), BYTES)


def merging():
    """A BPE over the characters of "a b" that joins a space to the "b" after it, and two "a"."""
    vocab = {token: i for i, token in enumerate(["<end>", "a", "b", "Ġ", "Ġb", "aa"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "b"), ("a", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, end_ids=(0,))


def test_no_token_reaches_from_the_prompt_into_the_completion():
    tokenizer = merging()
    template = Template(Text(template="none"), tokenizer)
    example = encode({"prompt": "ba", "completion": " b"}, template, tokenizer)
    assert (example.tokens.tolist(), example.trained.tolist()) == ([2, 1, 4, 0], [False, False, True, True])
    for prompt, completion in (("a ", "b"), ("a", "a")):
        with pytest.raises(ConfigError, match=f"a token reaches from the prompt's end '{prompt}' into the completion"):
            encode({"prompt": prompt, "completion": completion}, template, tokenizer)


def test_a_space_that_a_tokenizer_puts_before_every_text_is_not_trained():
    """As SentencePiece's do: "x" alone is "▁x", and within a text it is not."""
    vocab = {token: i for i, token in enumerate(["<end>", "▁", "▁x", "x", "=", "▁="])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "x"), ("▁", "=")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = Tokenizer(backend, end_ids=(0,))
    template = Template(Text(template="none"), tokenizer)
    assert encode({"prompt": "=", "completion": "x"}, template, tokenizer).tokens.tolist() == [5, 3, 0]
    assert encode({"prompt": "=", "completion": " x"}, template, tokenizer).tokens.tolist() == [5, 2, 0]
    backend.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(ConfigError, match="does not give back the completion 'X'"):
        encode({"prompt": "=", "completion": "X"}, template, tokenizer)


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
