"""The report: what it takes from a run, what it leaves out and says so, and that nothing a model wrote becomes markup."""

import base64
import csv
import dataclasses
import html
import json
import math
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tiny

from r1jax import config
from r1jax.config.base import ConfigError
from r1jax.config.observe import Report
from r1jax.observe import jsonl, report, runs
from r1jax.observe.metrics import MetricsWriter
from r1jax.observe.reflection import metrics as reflection
from r1jax.observe.report import curves, figures, panels, published, serve
from r1jax.observe.report.collect import collect
from r1jax.observe.samples import SamplesWriter

HOSTILE = '</script><img src=x onerror="window.pwned=1"><script>window.pwned=2</script><!--\u2028\ud800 \u202etfel'
README = Path(report.__file__).parent.parent / "README.md"


def make_run(path: Path, rows=(), samples=(), load=(), **changes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_json(tiny.grpo(**changes))))
    with MetricsWriter(path, tensorboard=False) as writer, SamplesWriter(path) as kept:
        for step, row in enumerate(rows, 1):
            writer.write(step, row)
        for step, row in enumerate(samples, 1):
            kept.write(step, [row])
        for step, each in enumerate(load, 1):
            writer.write_load(step, np.asarray(each, np.float32))
    return path


def sample(completion="<think>2 and 2</think> <answer>4</answer>", accuracy=1.0, status="ok", **more) -> dict:
    scores = {"accuracy": {"value": accuracy, "status": status, "why": "because"}}
    row = {"prompt_id": 7, "sample": 1, "source": "sums", "prompt": "2+2?", "completion": completion, "answer": 4}
    return {**row, "rewards": scores, "reward": accuracy, "advantage": 0.5, "finish": "stop", "length": 9, **more}


def data_of(page: str) -> dict:
    """What a page holds, read as a browser does: the element ends at the first ``</script``."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.S)[1])


# -- Made small


def test_a_long_curve_keeps_mean_least_and_most_of_each_stretch(tmp_path):
    run = make_run(tmp_path, [{"kl": v} for v in (1, 2, 6, 4, math.nan, 10, 0, 8, math.inf)])
    column = curves.read_columns(run / "metrics.jsonl")["kl"]
    found = curves.curve(column, 3)
    assert (found["n"], found["bad"]) == (9, 2)
    assert found["x"] == [1.5, 3.5, 7] and found["y"] == [1.5, 5, 6]
    assert found["lo"] == [1, 4, 0] and found["hi"] == [2, 6, 10]
    assert curves.curve(column, 7) == {"n": 9, "bad": 2, "x": [1, 2, 3, 4, 6, 7, 8], "y": [1, 2, 6, 4, 10, 0, 8]}


def test_the_curves_of_a_page_share_its_points():
    assert curves.points_each(10) == curves.POINTS
    assert curves.points_each(1000) * 1000 <= curves.ALL_POINTS < curves.POINTS * 1000


def test_expert_load_comes_back_from_its_levels(tmp_path):
    load = [[[1, 2, 0.5, 0], [4, 1, 1, 0.25]], [[1, 1, 1, 1], [16.5, 1e-3, 1, 1]]]
    found = curves.expert_load(make_run(tmp_path, load=load) / "experts.jsonl")
    levels = np.frombuffer(base64.b64decode(found["data"]), np.uint8).reshape(2, 2, 4)
    assert (found["steps"], found["layers"], found["experts"], found["left_out"]) == ([1, 2], 2, 4, 0)
    assert levels[0].tolist() == [[128, 160, 96, 0], [192, 128, 128, 64]] and levels[1, 1].tolist() == [255, 1, 128, 128]


def test_too_many_rows_of_expert_load_are_spread_and_counted(tmp_path):
    run = make_run(tmp_path, load=[[[1, 1]]] * 11)
    found = curves.expert_load(run / "experts.jsonl", cells=6)
    assert found["steps"] == [1, 6, 11] and found["left_out"] == 8


def test_samples_are_spread_over_the_run_and_the_rest_is_counted(tmp_path):
    run = make_run(tmp_path, samples=[sample(str(i)) for i in range(101)])
    rows, count = curves.samples(run / "samples.jsonl", 5)
    assert count == 101 and [row["answer"] for row in rows] == ["0", "25", "50", "75", "100"]
    shown = collect([runs.read(run)])["samples"]
    assert shown["total"] == 101 and len(shown["rows"]) == 101


def test_rows_that_take_too_much_give_way_evenly():
    rows = [{"answer": "数" * 1000, "i": i} for i in range(64)]
    kept = curves.fit(rows, 100_000)
    assert [row["i"] for row in kept] == list(range(0, 64, 2)) and curves.fit(rows, 10**9) == rows


@pytest.mark.parametrize(
    ("completion", "thought", "answer"),
    [
        ("<think>a</think> <answer>b</answer>", "a", " <answer>b</answer>"),
        ("a</think>b", "a", "b"),
        ("<think>a", "a", ""),
        ("b", "", "b"),
        ("<think>a</think>x</think>b", "a</think>x", "b"),
    ],
)
def test_thought_and_answer_are_told_apart(completion, thought, answer):
    assert curves.parts(completion) == (thought, answer)


def test_a_long_text_says_what_was_left_out(tmp_path):
    long = "<think>" + "t" * 9000 + "end of thought</think>" + "a" * 9000 + "42"
    ((row,), _) = curves.samples(make_run(tmp_path, samples=[sample(long)]) / "samples.jsonl", 5)
    assert row["clipped"] == ["thought", "answer"] and row["thought"].endswith("end of thought")
    left = 9014 - curves.TEXTS["thought"]
    assert f"[... {left:,} characters left out ...]" in row["thought"] and row["answer"].endswith("a42")


def test_the_page_of_a_long_run_is_small(tmp_path):
    """100,000 rows of metrics and 20,000 samples."""
    run = make_run(tmp_path)
    names = [f"time/{name}" for name in "abcdefgh"]
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, 100_001):
            row = ", ".join(f'"{name}": {(step * 2654435761 + i) % 1000003 / 7}' for i, name in enumerate(names))
            file.write(f'{{"step": {step}, {row}}}\n')
    row = json.dumps({"step": 0, **sample("<think>" + "数" * 100 + "</think>" + "答" * 40)}, ensure_ascii=False)
    with (run / "samples.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(f'{{"step": {i + 1}{row[10:]}\n' for i in range(20_000))
    data = collect([runs.read(run)])
    assert data["samples"]["total"] == 20_000 and 100 < len(data["samples"]["rows"]) <= curves.SAMPLES
    assert {row["step"] for row in data["samples"]["rows"]} >= {1} and data["samples"]["rows"][-1]["step"] > 19_000
    assert all(curve["n"] == 100_000 and len(curve["x"]) == curves.POINTS for curve in data["curves"][0].values())
    each = len(json.dumps(data["curves"][0]["time/a"]))
    assert each / curves.POINTS * curves.ALL_POINTS < 8e6  # however many curves there are
    assert len(report.render(data).encode()) < 15e6


# -- What is shown


def test_every_documented_metric_has_a_panel():
    lines = README.read_text().partition("## Metrics")[2].splitlines()
    keys = {key for line in lines if line.startswith("| `") for key in re.findall(r"`([^`]+)`", line.split("|")[1])}
    keys = {k.replace("NAME", "math").replace("KIND", "timeout").replace("WORD", "wait").replace("@K", "@8") for k in keys}
    assert len(keys) > 55
    groups = {group["title"]: group["panels"] for group in panels.lay_out(keys)}
    assert panels.OTHER not in groups, groups[panels.OTHER]
    drawn = [key for group in groups.values() for panel in group for key in panel["keys"]]
    assert sorted(drawn) == sorted(keys)  # each once
    (other,) = panels.lay_out({"mine/own"})
    assert other["title"] == panels.OTHER and other["panels"][0]["keys"] == ["mine/own"]


def test_failed_scores_are_no_rewards():
    by_title = {p["title"]: p["keys"] for g in panels.lay_out({"reward/a", "reward/a/errors/timeout"}) for p in g["panels"]}
    assert by_title == {"Reward by name": ["reward/a"], "Scores that failed": ["reward/a/errors/timeout"]}


def test_settings_stand_beside_the_published_ones():
    as_zero = config.to_json(dataclasses.replace(tiny.grpo(), optimizer=config.Optimizer(), group=16, clip_high=10.0))
    found = {row["field"]: row for row in published.beside(as_zero)}
    assert found["optimizer.lr"]["same"] == ["R1-Zero", "RL stage 1", "RL stage 2"]  # the defaults are R1's
    assert found["clip_high"]["same"] == ["RL stage 1", "RL stage 2"]
    assert found["questions"]["here"] == 2 and found["questions"]["same"] == [] and found["normalize"]["published"] == []
    rates = config.SFT(model=tiny.MOE).optimizer
    r1s = {row["field"]: row for row in published.beside(config.to_json(tiny.sft(optimizer=rates, batch=64)))}
    assert r1s["optimizer.lr_end"]["same"] == ["R1's SFT", "student 8B"] and r1s["batch"]["same"] == ["students"]


@pytest.mark.parametrize("kind", published.SETTINGS)
def test_the_published_settings_are_fields(kind):
    stage = {"grpo": tiny.grpo, "sft": tiny.sft, "rejection_sampling": tiny.rejection}[kind]()
    for setting in published.SETTINGS[kind]:
        value = config.to_json(stage)
        for part in setting.field.split("."):
            value = value[part]


def test_reflection_counts_whole_words_in_any_case():
    found = reflection(["Wait, wait. However, the waiter checks", "but I must CHECK; button"])
    assert found["reflection/wait"] == 1.0 and found["reflection/however"] == found["reflection/but"] == 0.5
    assert found["reflection/check"] == 0.5 and found["reflection/all"] == 2.5


def test_infinite_settings_are_shown(tmp_path):
    infinite = dataclasses.replace(tiny.grpo().optimizer, lr=math.inf)
    run = make_run(tmp_path / "run", [{"kl": 1.0}], optimizer=infinite)
    assert data_of(report.write(run).read_text("utf-8"))["configs"][0]["optimizer"]["lr"] == "inf"


def test_runs_that_differ_say_in_what(tmp_path):
    one = make_run(tmp_path / "one", [{"kl": 1.0}])
    two = make_run(tmp_path / "two", [{"kl": 2.0}], group=8, sources=(dataclasses.replace(tiny.source(), limit=3),))
    data = collect([runs.read(one), runs.read(two)])
    assert {d["field"]: d["values"] for d in data["differences"]} == {"group": [4, 8], "sources.0.limit": [None, 3]}
    assert [t["label"] for t in data["tracks"]] == ["one", "two"] and data["curves"][1]["kl"]["y"] == [2]


def test_figures_for_papers(tmp_path):
    run = make_run(tmp_path / "run", [{"reward/total": 0.5, "reward/format": 1.0}, {"reward/total": 0.75, "lr": 1.0}])
    assert report.report(Report(runs=(str(run),))) == 0
    with (run / "report" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["metric"], r["step"], r["value"]) for r in rows] == [
        ("reward/total", "1", "0.5"), ("reward/total", "2", "0.75"), ("reward/format", "1", "1"), ("lr", "2", "1"),
    ]  # fmt: skip
    assert (run / "report" / "reward-by-name.png").read_bytes()[:4] == b"\x89PNG"
    stages = (run / "report" / "stages.csv").read_text()
    assert "reward/total,0.5,0.75" in stages


def test_bench_figures_are_shown_and_other_files_refused(tmp_path):
    run = make_run(tmp_path / "run")
    file, other = tmp_path / "b.json", tmp_path / "other.json"
    figure = {"update": {"seconds": 1.5, "seconds_min": 1.4, "seconds_max": 1.9, "mfu": math.nan}}
    parts = {"command": "update", "settings": {"model": "m"}, "parameters": 3, "versions": {}, "limits": {"device": "cpu"}}
    file.write_text(json.dumps(parts | {"figures": {"r1jax": figure}, "ratios": {}}))
    other.write_text("{}")
    out = tmp_path / "page.html"
    assert report.report(Report(runs=(str(run),), out=out, figures=False, bench=(file,))) == 0
    assert data_of(out.read_text())["bench"][0]["figures"]["r1jax"]["update"]["seconds"] == 1.5
    with pytest.raises(ConfigError, match="other.json is no file that `r1jax bench --out` wrote"):
        report.report(Report(runs=(str(run),), bench=(other,)))


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="is no run directory"):
        report.report(Report(runs=(str(tmp_path),)))


def test_the_provenance_of_rows_is_told(tmp_path):
    rows = tmp_path / "rows.jsonl"
    (tmp_path / "rows.summary.json").write_text(json.dumps({"licences": {"MIT": 3}, "rows_that_name_a_model": 0, "x": 1}))
    source = dataclasses.replace(tiny.source(), path=str(rows))
    run = make_run(tmp_path / "run", [{"kl": 0.0}], sources=(source,))
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"digests": {"tiny": "sha256:ab"}, "inputs": {"sft": "step 2"}}))
    (told,) = collect([runs.read(run)])["provenance"]
    assert told["sources"][0]["digest"] == "sha256:ab" and told["inputs"] == {"sft": "step 2"}
    assert told["sources"][0]["summary"] == {"licences": {"MIT": 3}, "rows_that_name_a_model": 0}


# -- Hostile text


def hostile_run(path: Path) -> Path:
    rows = [{f"reward/{HOSTILE}".replace("\ud800", ""): 0.5, "kl": 0.1}] * 3
    bad = sample(f"<think>{HOSTILE}</think>{HOSTILE}", prompt=HOSTILE, answer=HOSTILE, source=HOSTILE)
    return make_run(path, rows, [bad | {"rewards": {HOSTILE: {"value": None, "status": "error", "why": HOSTILE}}}])


def test_nothing_that_a_model_wrote_becomes_markup(tmp_path):
    page = report.write(hostile_run(tmp_path / "<img src=x onerror=window.pwned=3>")).read_text("utf-8")
    assert "<img" not in page and page.count("<script") == page.count("</script") == 2 and "<!--" not in page
    rows = data_of(page)["samples"]["rows"]
    assert rows[0]["prompt"].startswith("</script><img src=x onerror=") and "\\u202e" in rows[0]["prompt"]
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-inline" not in policy.split("style-src")[0]


# -- While it goes on


@pytest.fixture
def server(tmp_path):
    run = make_run(tmp_path / "run", [{"kl": 0.5}])
    made = serve.Server(0, lambda: report.sign([run]), lambda: collect([runs.read(run)]))
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield run, made.url
    made.shutdown()
    made.server_close()
    thread.join()


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.status, answer.read().decode()


def test_the_served_page_has_the_news(server):
    run, url = server
    first = data_of(get(url)[1])
    assert first["curves"][0]["kl"]["y"] == [0.5]
    assert get(f"{url}data.json?since={first['live']}") == (204, "")
    with MetricsWriter(run, tensorboard=False) as writer:
        writer.write(2, {"kl": 0.25})
    status, text = get(f"{url}data.json?since={first['live']}")
    assert status == 200 and json.loads(text)["curves"][0]["kl"]["y"] == [0.5, 0.25]


def test_the_server_is_for_this_machine_alone(server):
    _, url = server
    assert url.startswith("http://127.0.0.1:")
    for headers, path, status in (({"Host": "evil.example:80"}, "", 403), ({}, "etc/passwd", 404)):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(url + path, **headers)
        assert error.value.code == status


def test_a_torn_line_does_not_stop_the_page(server):
    run, url = server
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "kl')
    assert data_of(get(url)[1])["curves"][0]["kl"]["n"] == 1
    assert [row["step"] for row in jsonl.read(run / "metrics.jsonl")] == [1]


def test_names_of_pictures_hold_no_paths(tmp_path):
    data = {"tracks": [{"label": "x", "kind": "grpo", "state": "killed", "step": 1, "edges": {}}]}
    data["curves"] = [{"a/../../b": {"x": [1], "y": [2]}}]
    data["groups"] = panels.lay_out({"a/../../b"})
    figures.write(data, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-b.png", "curves.csv", "stages.csv"]
