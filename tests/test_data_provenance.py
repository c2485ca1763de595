"""Where rows come from, rows that a language model signed, and what a run keeps about its sources."""

import hashlib
import json
import time

import pytest

from r1jax import cli, config, rundir
from r1jax.config import ConfigError, Eval, Source
from r1jax.data import provenance
from r1jax.data.provenance import Manifest, origin, read_manifest, self_namings
from r1jax.data.self_naming import FAMILIES, named

SIGNED = {
    "I am ChatGPT, a large language model trained by OpenAI.": "ChatGPT",
    "As an AI language model developed by OpenAI, I cannot do that.": "ChatGPT",
    "As ChatGPT, I have no feelings.": "ChatGPT",
    "I am based on GPT-4.": "ChatGPT",
    "I am an AI chatbot developed and trained by the team at OpenAI": "ChatGPT",
    "I'm **ChatGPT**!": "ChatGPT",
    "我是由OpenAI训练的大型语言模型。": "ChatGPT",
    "作为由OpenAI开发的人工智能，我不能": "ChatGPT",
    "I'm Claude, an AI assistant created by Anthropic.": "Claude",
    "Hello! I’m an AI assistant called Claude.": "Claude",
    "I am Claude 3 Opus": "Claude",
    "You are a helpful assistant named Claude.": "Claude",
    "I was created by Anthropic.": "Claude",
    "I am a large language model, trained by Google.": "Gemini",
    "My name is Gemini. How can I help?": "Gemini",
    "I am Llama.": "Llama",
    "I'm a Llama model from Meta": "Llama",
    "我是通义千问，由阿里云开发。": "Qwen",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.": "Qwen",
    "您好！我是由中国的深度求索（DeepSeek）公司开发的智能助手DeepSeek-R1。": "DeepSeek",
    "i am deepseek-r1": "DeepSeek",
    "我是文心一言": "ERNIE",
    "我叫Kimi，是月之暗面的智能助手": "Kimi",
    "我的名字是豆包": "Doubao",
    "I'm Grok, built by xAI": "Grok",
}
UNSIGNED = [
    "I am Claude Monet, the painter.",
    "I'm a Gemini, born in June.",
    "I am a llama farmer.",
    "The bard sang: I am the Bard of Avon.",
    "Models such as ChatGPT and Claude",
    "They are known as ChatGPT.",
    "I am a ChatGPT user.",
    "I am going to ask ChatGPT.",
    "I was hired by Google.",
    "I am not ChatGPT.",
    "DeepSeek-R1 was trained by DeepSeek.",
    "Claude and I are friends.",
    "我不是ChatGPT",
    "我是ChatGPT的用户",
    "我喜欢用通义千问",
    "我是老师，百度开发了文心一言",
    "Natalia sold clips to 48 of her friends in April.",
]


@pytest.mark.parametrize("text", SIGNED)
def test_a_model_that_names_itself(text):
    for framed in (text, f"Who are you?\n{text}\nAnd you?"):
        assert list(named(framed)) == [SIGNED[text]]


@pytest.mark.parametrize("text", UNSIGNED)
def test_a_text_that_only_speaks_of_models(text):
    assert named(text) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_and_maker_of_the_table(family):
    names, shared, makers = FAMILIES[family]
    for name in (*names, *shared):
        assert family in named(f"Hello. I am {name}.") and family in named(f"你好，我是{name}。"), name
        assert not named(f"Do you know {name}?") and not named(f"你知道{name}吗？"), name
    for maker in makers:
        assert family in named(f"I am an AI assistant developed by {maker}."), maker
        assert family in named(f"我是{maker}开发的助手"), maker


def test_hostile_texts_take_no_longer_than_long_ones():
    """Time grows no faster than length."""
    for text in ("I am ", "I am an AI language model called the ", "我是一个阿里云的"):
        seconds = []
        for times in (300, 2_400):
            began = time.process_time()
            named(f"{text * times} chatgpt google claude")
            seconds.append(time.process_time() - began)
        assert seconds[1] < 30 * seconds[0] + 0.1


def test_several_names_in_one_row_and_none():
    row = {"id": 3, "completion": "I am ChatGPT.", "more": ["我是通义千问"], "provenance": {"x": "I am Claude."}}
    assert self_namings(row) == (
        {"ChatGPT": {"field": "completion", "said": "I am ChatGPT"}, "Qwen": {"field": "more", "said": "我是通义千问"}},
        False,
    )
    assert self_namings({"completion": "As an AI language model, I cannot."}) == ({}, True)
    assert self_namings({"completion": "作为一个人工智能，我不能"}) == ({}, True)
    assert self_namings({"completion": "As an AI developed by OpenAI, I cannot."})[1] is False
    assert self_namings({"completion": "As an aide, I can."}) == ({}, False)


TOML = """
[default]
source = "ours"
licence = "CC0-1.0"

[sources."openai/gsm8k"]
license = "MIT"
date = 2021-10-27
"""


@pytest.mark.parametrize(
    "row, source, licence, date",
    [
        ({}, "ours", "CC0-1.0", "unknown"),
        ({"source": "openai/gsm8k"}, "openai/gsm8k", "MIT", "2021-10-27"),
        ({"source": "openai/gsm8k", "license": "GPL-3.0", "date": 2020}, "openai/gsm8k", "GPL-3.0", "2020"),
        ({"source": "elsewhere"}, "elsewhere", "unknown", "unknown"),  # the default is not for rows of another source
        ({"licence": None, "date": ""}, "ours", "CC0-1.0", "unknown"),
        ({"source": "x", "provenance": {"source": "openai/gsm8k", "date": "unknown"}}, "openai/gsm8k", "MIT", "2021-10-27"),
    ],
)
def test_what_a_row_says_goes_before_the_manifest(tmp_path, row, source, licence, date):
    (tmp_path / "m.toml").write_text(TOML)
    expected = {"source": source, "licence": licence, "date": date}
    manifest = read_manifest(tmp_path / "m.toml")
    assert origin(row, manifest) == expected
    assert origin({**row, "provenance": expected}, manifest) == expected  # a second pass changes nothing
    as_json = {"default": manifest.default, "sources": {"openai/gsm8k": {"licence": "MIT", "date": "2021-10-27"}}}
    (tmp_path / "m.json").write_text(json.dumps(as_json))
    assert origin(row, read_manifest(tmp_path / "m.json")) == expected
    assert origin({}, Manifest(None, {}, {})) == dict.fromkeys(("source", "licence", "date"), "unknown")


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("m.toml", "[default", "m.toml is not TOML: "),
        ("m.json", "{", "m.json is not JSON: "),
        ("m.json", "[]", "a manifest holds 'default' and 'sources'"),
        ("m.toml", "[gsm8k]\nlicence = 'MIT'", "a manifest holds 'default' and 'sources'"),
        ("m.toml", "[sources]\ngsm8k = 'MIT'", "sources.gsm8k is 'MIT'; it must be a table of source, licence, date"),
        ("m.toml", "[default]\nlicenze = 'MIT'", "default has 'licenze'; a section holds source, licence, date"),
        ("m.toml", "[default]\ndate = 'May 2021'", "default.date is 'May 2021'; write YYYY, YYYY-MM or YYYY-MM-DD"),
        ("m.toml", None, "cannot read "),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read_manifest(tmp_path / name)
    assert said in str(error.value) and "\n" not in str(error.value)


ROWS = [
    {"prompt": "1+1", "answer": "2", "source": "openai/gsm8k"},
    {"prompt": "Who are you?", "answer": "", "completion": "I am ChatGPT."},
    {"prompt": "Wer?", "answer": "", "completion": "As an AI, I do not know."},
    {"prompt": "谁", "answer": "", "completion": "我是通义千问", "license": "GPL-3.0"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "rows.manifest.toml").write_text(TOML + '\n[sources.nobody]\nlicence = "MIT"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_drops_or_flags_and_says_what_it_proves(folder, capsys):
    assert cli.main(["data", "provenance", "--data", "rows.jsonl", "--out", "out.jsonl"]) == 0
    ours = {"source": "ours", "licence": "CC0-1.0", "date": "unknown"}
    gsm8k = {"source": "openai/gsm8k", "licence": "MIT", "date": "2021-10-27"}
    assert read(folder / "out.jsonl") == [{**ROWS[0], "provenance": gsm8k}, {**ROWS[2], "provenance": ours}]
    assert read(folder / "out.report.jsonl") == [
        {"row": "rows.jsonl:2", "models": {"ChatGPT": {"field": "completion", "said": "I am ChatGPT"}}},
        {"row": "rows.jsonl:4", "models": {"Qwen": {"field": "completion", "said": "我是通义千问"}}},
    ]
    summary = json.loads((folder / "out.summary.json").read_text())
    assert summary["licences"] == {"CC0-1.0": 2, "MIT": 1, "GPL-3.0": 1}
    assert summary["models"] == {"ChatGPT": 1, "Qwen": 1} and summary["rows_that_name_a_model"] == 2
    assert summary["rows_of_an_unnamed_model"] == 1
    assert summary["notice"] == provenance.NOTICE and "proves nothing" in provenance.NOTICE
    out, err = capsys.readouterr()
    assert not out and "4 rows, 2 kept in out.jsonl, 2 dropped" in err and "dates: unknown 3, 2021-10-27 1" in err
    assert "the manifest's sources that no row names: nobody" in err and provenance.NOTICE in err

    assert cli.main(["data", "provenance", "--data", "rows.jsonl", "--out", "flagged.jsonl", "--named", "flag"]) == 0
    flagged = read(folder / "flagged.jsonl")
    assert len(flagged) == 4 and [row.get("names_model") for row in flagged] == [None, ["ChatGPT"], None, ["Qwen"]]
    (folder / "rows.manifest.toml").unlink()
    assert cli.main(["data", "provenance", "--data", "rows.jsonl", "--out", "bare.jsonl"]) == 0
    assert json.loads((folder / "bare.summary.json").read_text())["licences"] == {"unknown": 3, "GPL-3.0": 1}


def test_a_run_keeps_the_digest_of_every_source(folder):
    from r1jax.stages.prepare import prepare  # jax takes seconds

    def digests(held_out):
        stage = config.SFT(
            model=config.Model(vocab_size=264, d_model=16, d_ff=16, segments=(config.Segment("dense", 1),)),
            text=config.Text(tokenizer="bytes"),
            sources=(Source(path="rows.jsonl", name="mine"), Source(name="sums", options={"digits": 2})),
            eval=Eval(every=1, sources=(Source(path=held_out, name="asked"),)),
        )
        return prepare(stage).digests

    (folder / "held.jsonl").write_bytes((folder / "rows.jsonl").read_bytes())
    first = digests("held.jsonl")
    assert set(first) == {"sources.mine", "sources.sums", "eval.sources.asked"}
    assert first["sources.mine"] == first["eval.sources.asked"] != first["sources.sums"]
    assert first["sources.mine"] == f"sha256:{hashlib.sha256((folder / 'rows.jsonl').read_bytes()).hexdigest()}"
    (folder / "held.jsonl").write_bytes((folder / "rows.jsonl").read_bytes() + b"\n")
    second = digests("held.jsonl")
    assert second.pop("eval.sources.asked") != first.pop("eval.sources.asked") and first == second
    run = rundir.create("r", {"kind": "sft"}, folder / "run")
    run.record({}, first)
    assert json.loads((folder / "run/config.json").read_text())["digests"] == first
