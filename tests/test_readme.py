"""What README.md tells people to do, done."""

import json
import re
from pathlib import Path

import pytest

from r1jax import cli
from r1jax.data import sources
from r1jax.observe.metrics import read_metrics

README = (Path(__file__).parent.parent / "README.md").read_text()


def example(name: str) -> str:
    """The Python block that README.md introduces as the file ``name``."""
    return re.search(rf"`{re.escape(name)}`:\n\n```python\n(.*?)```", README, re.S)[1]


def test_the_rows_it_shows_are_rows(here):
    (here / "rows.jsonl").write_text(re.search(r"`rows.jsonl`.*?```json\n(.*?)```", README, re.S)[1])
    assert [row["answer"] for row in sources.load(sources.named("rows.jsonl"))] == ["312", "97"]


def test_the_commands_on_rows_are_all_there():
    row = re.search(r"^\| `r1jax data show.*$", README, re.M)[0]
    assert [name for name in cli.DATA if name not in row] == []


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_custom_reward_trains(here):
    for name in ("my_reward.py", "my_config.py"):
        (here / name).write_text(example(name))
    rows = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(60)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["train", tiny_start(here), "--run-dir", "start"]) == 0
    flags = "--init start --text.template {{prompt}} --matmul-dtype float32 --steps 1 --questions 2 --group 4"
    flags += " --micro-batch 8"
    flags += " --sampling.max-new-tokens 4 --engine.slots 8 --eval.limit 4 --mesh.fsdp 1 --no-preflight --run-dir run"
    assert cli.main(["train", "my_config.py", "--optimizer.lr", "5e-6", *flags.split()]) == 0
    name = "my_reward.py:concise"
    trained = [row for row in read_metrics(here / "run") if f"reward/{name}" in row]
    assert len(trained) == 1 and trained[0]["source/mine/reward"] == trained[0][f"reward/{name}"]
    assert json.loads((here / "run" / "samples.jsonl").read_text().splitlines()[0])["rewards"][name]["status"] == "ok"


def tiny_start(here: Path) -> str:
    """A config that makes the smallest model, for the README's config starts from a pretrained one."""
    (here / "start.py").write_text("import tiny\n\n\ndef config():\n    return tiny.sft(steps=1)\n")
    return "start.py"


def test_the_custom_reward_is_right():
    namespace = {}
    exec(example("my_reward.py"), namespace)
    concise, row = namespace["concise"], {"answer": "42"}
    assert concise("", "42", row) == 1.25
    assert concise("", "It is 42.", row) == 1.125
    assert concise("", "41", row) == concise("", "", row) == 0


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
