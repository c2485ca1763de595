"""chat, and answers that are shown as they come. The sampler is a script, but for one conversation with a tiny model."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from random_models import draw

from r1jax import cli, config, loading
from r1jax.config import Sampling, Text, commands
from r1jax.data.template import Template
from r1jax.data.tokenizer import byte_tokenizer
from r1jax.eval import chat, generate
from r1jax.eval.answers import questions
from r1jax.models import decoder
from r1jax.types import FINISH, GOING, Trajectories

TOKENIZER = byte_tokenizer()
END = TOKENIZER.end_ids[0]
TEXT = Text(tokenizer="bytes", template="{% for m in messages %}{{ m.role[0] }}{{ m.content }}|{% endfor %}<think>")


class Script:
    """A sampler whose answers are known: each a list of (tokens so far, finish), or an exception to raise."""

    def __init__(self, *answers):
        self.answers, self.prompts, self.rounds = list(answers), [], []

    def stream(self, prompt, sampling, *, chunk, round, id):
        self.prompts.append(TOKENIZER.decode(prompt))
        self.rounds.append(round)
        for step in self.answers.pop(0):
            if isinstance(step, BaseException):
                raise step
            tokens, finish = step
            yield trajectory(list(prompt), list(tokens), finish)


def trajectory(prompt, answer, finish):
    row = np.array([[*prompt, *answer]], np.int32)
    lengths = [np.array([n], np.int32) for n in (len(prompt), row.shape[1], 0, 0)]
    mask = np.arange(row.shape[1])[None] >= len(prompt)
    return Trajectories(row, lengths[0], lengths[1], mask, np.zeros(row.shape, np.float32), np.array([finish]), *lengths[2:])


def told(text, finish="stop", every=3):
    """The steps of an answer that is a text."""
    ids = TOKENIZER.encode(text) + [END] * (finish == "stop")
    return [(ids[:n], GOING) for n in range(every, len(ids), every)] + [(ids, FINISH.index(finish))]


def pieces(*steps):
    (question,) = questions([{"prompt": "hi"}], [0], Template(TEXT, TOKENIZER))
    return [piece for _, piece in generate.stream(question, Script(steps), TOKENIZER, Sampling())]


def test_a_character_is_shown_when_it_is_whole():
    ids = TOKENIZER.encode("é🙂z")
    one_by_one = [(ids[:n], GOING) for n in range(1, len(ids))] + [([*ids, END], 1)]
    assert pieces(*one_by_one) == ["<think>", "é", "", "", "", "🙂", "z"]
    assert pieces((ids[:5], GOING), (ids[:5], 0)) == ["<think>é", "�"]  # the cap came first, and nothing is held back
    broken = [*ids[2:4], *TOKENIZER.encode("a")]
    assert pieces((broken[:2], GOING), (broken, GOING), (broken, 0)) == ["<think>", "�a", ""]


def talk(script, **options):
    args = commands.Chat(model="m", **{"context": 64, "max_new_tokens": 16} | options)
    return chat.Talk(Template(TEXT, TOKENIZER), script, TOKENIZER, args)


def test_an_answer_sees_what_was_said_before_and_draws_anew(capsys):
    script = Script(told("one"), told("two"), told("thr", "length"))
    talking = talk(script)
    for line in ("a", "b", "c"):
        talking.turn(line)
    first, second = "ua|<think>", "ua|a<think>one|ub|<think>"
    assert script.prompts == [first, second, "ua|a<think>one|ub|a<think>two|uc|<think>"]
    assert len(set(script.rounds)) == 3
    out, err = capsys.readouterr()
    assert out == "<think>one\n<think>two\n<think>thr\n" and err == "(cut at --max-new-tokens 16)\n"


def test_an_interrupt_stops_the_answer_and_keeps_what_was_shown(capsys):
    script = Script([*told("partial")[:1], KeyboardInterrupt()], told("on"), [KeyboardInterrupt()], told("and"))
    talking = talk(script)
    for line in ("a", "b", "c", "d"):
        talking.turn(line)
    assert script.prompts[1] == "ua|a<think>par|ub|<think>"
    assert script.prompts[3] == "ua|a<think>par|ub|a<think>on|ud|<think>"  # nothing was said to c
    out, err = capsys.readouterr()
    assert out == "<think>par\n<think>on\n\n<think>and\n" and err == "(stopped)\n(stopped)\n"


def test_a_full_context_is_one_line(capsys):
    script = Script(told("one"), told("two"))
    talking = talk(script)
    talking.turn("a")
    talking.turn("x" * 40)  # and "ua|a<think>one|", "u", "|<think>": 9, 1 and 2 tokens
    talking.turn("y")
    assert script.prompts[1] == "ua|a<think>one|uy|<think>"
    out, err = capsys.readouterr()
    assert out == "<think>one\n<think>two\n"
    assert err.startswith("the context is full: 52 tokens, and --context 64 leaves 48 ") and err.count("\n") == 1


def terminal(monkeypatch, keys):
    """Standard input and output as terminals where ``keys`` come in: lines, or exceptions that a key raises."""
    keys = iter(keys)

    def press(prompt=""):
        assert prompt == chat.PROMPT
        key = next(keys, EOFError())
        if isinstance(key, BaseException):
            raise key
        return key

    monkeypatch.setattr("builtins.input", press)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)


def test_the_keys_of_a_terminal(monkeypatch, capsys):
    terminal(monkeypatch, ["a", KeyboardInterrupt(), "b"])
    assert list(chat.lines()) == ["a", "b"] and capsys.readouterr().out == "\n\n"


@pytest.fixture
def model(monkeypatch):
    """``--model tiny`` is a model with these parameters."""
    params = draw(tiny.DENSE, kernel=0.6)
    def read(model, where, report):  # new arrays each time, as of a file: a sampler takes them over
        return jax.device_put(jax.tree.map(np.array, params), where)

    opened = loading.Opened("tiny", tiny.DENSE, TOKENIZER, TEXT, read)
    monkeypatch.setattr(loading, "open_model", {"tiny": opened}.__getitem__)
    return params


def greedy(params, prompt, count):
    """The likeliest answer, by the full forward pass, as text."""

    @jax.jit
    def logits(row):
        hidden, _, _ = decoder.forward(params, row[None], jnp.arange(80)[None], jnp.ones((1, 80), int), model=tiny.DENSE)
        return hidden[0] @ decoder.head_kernel(params)

    first = TOKENIZER.encode(prompt)
    tokens = list(first)
    while len(tokens) < len(first) + count:
        row = jnp.array([*tokens, *[7] * (80 - len(tokens))])
        tokens.append(int(logits(row)[len(tokens) - 1].argmax()))
        if tokens[-1] == END:
            return TOKENIZER.decode(tokens[len(first) : -1])
    return TOKENIZER.decode(tokens[len(first) :])


def test_lines_of_a_pipe_are_answered(model, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n\ncd\n /clear \nab\n/exit\nnever\n"))
    system = "é" * 13  # so long that both prompts are padded alike
    line = f"chat --model tiny --system {system} --context 70 --max-new-tokens 6 --temperature 0 --mesh.fsdp 1"
    assert cli.main(line.split()) == 0
    first = "<think>" + greedy(model, f"s{system}|uab|<think>", 6)
    second = "<think>" + greedy(model, f"s{system}|uab|a{first}|ucd|<think>", 6)
    out, err = capsys.readouterr()
    assert out == f"{first}\n{second}\n{first}\n"
    assert set(err.splitlines()) <= {"(cut at --max-new-tokens 6)"}  # no hints: nobody is at the keyboard


def test_bfloat16_products_on_request(model, tmp_path, capsys):
    """Other numbers than the model's own float32, and not very different ones."""
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 262, (2, 9)))
    found = []
    for flags in ([], ["--matmul-dtype", "bfloat16"]):
        line = f"score --model tiny --tokens {tmp_path}/in.npy --out {tmp_path}/out.npz --mesh.fsdp 1"
        assert cli.main([*line.split(), *flags]) == 0
        found.append(np.load(tmp_path / "out.npz")["logprobs"])
    assert 1e-3 < abs(found[1] - found[0]).mean() < 0.1


def test_several_processes_do_not_chat(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(config.ConfigError, match="chat runs in one process, and 2 were started"):
        chat.chat(commands.Chat(model="m"))
