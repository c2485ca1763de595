"""What a finished run shows: before and after, the curve, samples, and what to try next."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1jax.config import AnyStage, Pipeline, RejectionSampling, RewardModel, Stage
from r1jax.observe import jsonl
from r1jax.observe.curve import curve_png, curve_text
from r1jax.observe.metrics import FILE, read_metrics, series
from r1jax.observe.samples import print_sample


def show(path: Path, settings: AnyStage | Pipeline) -> None:
    """Prints the end of a run, and writes curve.png beside its metrics."""
    console = Console(highlight=False)
    described = settings.stages() if isinstance(settings, Pipeline) else {path.name: settings}
    stages = {n: path / n for n in described} if isinstance(settings, Pipeline) else {path.name: path}
    stages = {name: run for name, run in stages.items() if (run / FILE).exists()}  # --until leaves some out
    for name, run in stages.items():
        rows = read_metrics(run)
        if any("eval/pass@1" in row for row in rows):
            show_stage(console, name, run, rows, first_reward(described[name]))
    last = list(stages.values())[-1] if stages else path
    hints = {
        "all of it on one page": f"r1jax report {path}",
        "answer a prompt of yours": f"r1jax generate --model {path} --prompt '...'",
        "read where it goes wrong": f"r1jax samples {path} --where {shlex.quote(f'{first_reward(described[last.name])}=0')}",
        "see every metric over the steps (pip install tensorboard)": f"tensorboard --logdir {last}",
    }
    if isinstance(settings, RejectionSampling):
        hints = {"read what was dropped, and why": f"r1jax samples {path} --where dropped=unreadable"}
    if isinstance(settings, RewardModel):
        name = f"'model{{\"run\":\"{path}\"}}'"
        hints = {
            "score answers": f"r1jax reward --rewards {name} --data rows.jsonl --out scored.jsonl",
            "let it reward a policy": f"preference=(Preference(model={str(path)!r}),) in a GRPO stage",
        }
    console.print(f"\nThe run is in {path}. Try next:", markup=False, soft_wrap=True)
    for purpose, command in hints.items():
        console.print(f"  {purpose}:\n    {command}", markup=False, soft_wrap=True)


def first_reward(stage: AnyStage) -> str:
    """The name of the reward that says first whether an answer is right; of a stage without any that of the total."""
    held_out = stage.eval.sources if isinstance(stage, Stage) else ()
    return next((name for source in (*stage.sources, *held_out) for name in source.rewards), "reward")


def show_stage(console: Console, name: str, run: Path, rows: list[dict], reward: str) -> None:
    evals = [row for row in rows if "eval/pass@1" in row]
    first, final = evals[0], evals[-1]
    table = Table(title=f"{name}: held-out problems", title_justify="left")
    for column in ("", f"step {first['step']:.0f}", f"step {final['step']:.0f}"):
        table.add_column(column, justify="left" if not column else "right")
    for key in [k for k in final if k.startswith("eval/") and k in first and k != "eval/left_out"]:
        table.add_row(key.removeprefix("eval/"), f"{first[key]:.3f}", f"{final[key]:.3f}")
    console.print(table)
    if left_out := final.get("eval/left_out"):
        console.print(f"{left_out:.0f} held-out problems were left out: their prompts are too long")
    keys = {f"training {reward}": f"reward/{reward}", "held-out pass@1": "eval/pass@1"}
    curves = {label: series(rows, key) for label, key in keys.items()}
    curves = {label: points for label, points in curves.items() if len(points) > 1}
    if not curves:
        return
    curve_png(run / "curve.png", curves, title=f"{name}: {reward}", ylabel=reward)
    label, points = next(iter(curves.items()))
    console.print(curve_text(points, min(console.width, 78), 14, f"{name}: {label}", encoding=console.encoding), markup=False)
    console.print(f"(as a picture: {run / 'curve.png'})")
    before_and_after(console, name, run)


def before_and_after(console: Console, name: str, run: Path) -> None:
    """The same held-out question, answered by the first and by the last policy."""
    file = run / "samples.jsonl"
    kept = [row for row in jsonl.read(file) if row.get("held_out")] if file.exists() else []
    if not kept or kept[0]["step"] == kept[-1]["step"]:
        return
    before = {row["prompt_id"]: row for row in kept if row["step"] == kept[0]["step"]}
    after = {row["prompt_id"]: row for row in kept if row["step"] == kept[-1]["step"]}
    # The question whose answer changed the most says the most.
    most = max(before.keys() & after.keys(), key=lambda i: (abs(after[i]["reward"] - before[i]["reward"]), -i))
    for label, row in (("before", before[most]), ("after", after[most])):
        print_sample(row, f"{name}, {label}", console)
