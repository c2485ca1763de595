"""Tokenizers, templates and names of files."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from r1jax.config import ConfigError, Text
from r1jax.data.template import Template
from r1jax.data.tokenizer import byte_tokenizer, load

CHATML = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {%- if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""


@pytest.fixture
def directory(tmp_path):
    """A small BPE with the files that a released model has."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        ["the cat sat on the mat"] * 9,
        trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.enable_truncation(3)
    bpe.enable_padding(length=8)
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": None, "chat_template": CHATML, "model_max_length": 9})
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    return tmp_path


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    if "<" not in text:
        assert [i - 6 for i in ids] == list(text.encode())


def test_bytes_vocabulary():
    tokenizer = load(Text(tokenizer="bytes"))
    assert (
        tokenizer.vocab_size == 262 and tokenizer.end_ids == (1,) and tokenizer.prefix == "" and tokenizer.chat_template is None
    )
    assert tokenizer.encode("<|pad|><|end|><think></think><answer></answer>") == [0, 1, 2, 3, 4, 5]
    assert tokenizer.encode("a <think>b") == [6 + 97, 6 + 32, 2, 6 + 98]
    assert tokenizer.decode([2, 6 + 97, 3, 1, 0], skip_special=True) == "<think>a</think>"
    assert tokenizer.decode([6 + 0xC3]) == "�"
    assert tokenizer.decode([6 + 0xC3, 6 + 0xA9]) == "é"


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_released_tokenizer(directory, name):
    tokenizer = load(Text(tokenizer=str(directory / name)))
    assert tokenizer.end_ids == (2, 0) and tokenizer.chat_template == CHATML
    text = "the cat sat on the mat, naïvely<|im_end|>"
    ids = tokenizer.encode(text)
    assert 8 < len(ids) < 24 and ids[-1] == 2 and tokenizer.decode(ids) == text  # neither cut to 3 nor padded to 8
    assert tokenizer.decode(ids, skip_special=True) == text.removesuffix("<|im_end|>")
    assert tokenizer.vocab_size == max(tokenizer.backend.get_vocab().values()) + 1


def test_save_and_load(directory, tmp_path):
    (directory / "chat_template.jinja").write_text("{{ prompt }}!")
    for tokenizer in (load(Text(tokenizer=str(directory))), byte_tokenizer()):
        tokenizer.save(tmp_path / "saved" / "here")
        (tmp_path / "saved" / "here" / "chat_template.jinja").unlink(missing_ok=True)
        again = load(Text(tokenizer=str(tmp_path / "saved" / "here")))
        assert again.end_ids == tokenizer.end_ids and again.chat_template == tokenizer.chat_template
        assert again.encode("<think>the cat<|im_end|>") == tokenizer.encode("<think>the cat<|im_end|>")
        assert again.config.get("model_max_length") == tokenizer.config.get("model_max_length")
        assert again.decode([0, 1, 2], skip_special=True) == tokenizer.decode([0, 1, 2], skip_special=True)


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for text, said in [
        (Text(tokenizer="nowhere"), "there is no file nowhere"),
        (Text(tokenizer=str(tmp_path)), "is not a tokenizer.json"),
    ]:
        with pytest.raises(ConfigError, match=said) as error:
            load(text)
        assert "\n" not in str(error.value)


def render(prompt, **text):
    rendered = Template(Text(**text), byte_tokenizer()).render(prompt)
    return rendered.text, rendered.prefill


CONVERSATION = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>so</think>4"},
    {"role": "user", "content": "3+3?"},
]


def test_templates_without_a_chat_template():
    assert render("2+2=", template="none") == ("2+2=", "")
    assert render("2+2=", template="none", system="Add.") == ("Add.\n\n2+2=", "")
    assert render("2+2?", template="r1") == ("<｜User｜>2+2?<｜Assistant｜><think>\n", "<think>\n")
    assert render(CONVERSATION, template="r1", system="Add.") == (
        "Add.<｜User｜>2+2?<｜Assistant｜>4<｜end▁of▁sentence｜><｜User｜>3+3?<｜Assistant｜><think>\n",
        "<think>\n",
    )
    text, prefill = render("What is {{ 2+2 }}?", template="auto")
    assert text == render("What is {{ 2+2 }}?", template="r1-zero")[0] and prefill == ""
    preamble, question = text.split(" User: ")
    assert question == "What is {{ 2+2 }}?. Assistant:"
    for part in ("User", "Assistant", "first thinks", "<think> the reasoning </think> <answer> the answer </answer>."):
        assert part in preamble
    said = render(CONVERSATION, template="r1-zero", system="Add.")[0]
    assert said == f"{preamble} Add. User: 2+2?. Assistant: <think>so</think>4 User: 3+3?. Assistant:"


def test_inline_templates_and_what_they_prefill():
    assert render("hi", template="Q: {{ prompt }} A:") == ("Q: hi A:", "")
    assert render("hi", template="Q: {{ prompt }} A: <think>\n ") == ("Q: hi A: <think>\n ", "<think>\n ")
    assert render("hi", template="{{ messages[0].content }}{{ extra }}", template_options={"extra": 3}) == ("hi3", "")
    assert render("a <think> b", template="{{ prompt }}")[1] == ""


def test_chat_template(directory):
    tokenizer = load(Text(tokenizer=str(directory)))
    auto = Template(Text(), tokenizer)
    text = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert auto.render("hi").text == text == Template(Text(template="chat"), tokenizer).render("hi").text
    assert auto.encode("hi") == (tokenizer.encode(text), "")
    brief = Template(Text(system="Be brief."), tokenizer)
    assert brief.render("hi").text == text.replace("Be kind.", "Be brief.")
    own = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "hi"}]
    assert brief.render(own).text == text.replace("Be kind.", "Be long.")
    off = Template(Text(template_options={"enable_thinking": False}), tokenizer).render("hi")
    assert off.prefill == "<think>\n\n</think>\n\n" and off.text == text + off.prefill
    with pytest.raises(ConfigError, match="template chat: no tools here"):
        auto.render([{"role": "tool", "content": "1"}])


def test_a_plain_text_begins_as_the_model_expects(directory):
    config = {"bos_token": "<|endoftext|>", "add_bos_token": True, "chat_template": "{{ bos_token }}{{ prompt }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load(Text(tokenizer=str(directory)))
    for name in ("none", "chat"):
        assert Template(Text(template=name), tokenizer).encode("the cat")[0] == [0, *tokenizer.encode("the cat")]
    processor = tokenizers.processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.backend.post_processor = processor
    tokenizer.save(directory / "b")
    (directory / "b" / "tokenizer_config.json").write_text("{}")
    assert load(Text(tokenizer=str(directory / "b"))).prefix == "<|im_start|>"


def test_faulty_templates():
    for template, said in [
        ("r2", "text.template is 'r2'; use auto, chat"),
        ("chat", "has no chat template"),
        ("{{ prompt", "unexpected end of template"),
    ]:
        with pytest.raises(ConfigError, match=said):
            Template(Text(template=template), byte_tokenizer())
    with pytest.raises(ConfigError, match="unsafe"):
        render("hi", template="{{ prompt.__class__.__mro__ }}")
    with pytest.raises(ConfigError, match="unsafe|append"):
        render("hi", template="{{ messages.append(1) }}")
