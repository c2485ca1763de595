"""Before step 1: do the rewards know a right answer from none, and is there anything to learn from."""

from __future__ import annotations

import dataclasses

import numpy as np

from r1jax.advantages import no_signal
from r1jax.config.base import GuardStop
from r1jax.eval import answers as asking
from r1jax.eval.answers import Answers, Question
from r1jax.rewards import Score
from r1jax.rewards.load import split_options
from r1jax.stages.evaluation import correct
from r1jax.stages.workspace import Workspace

ROUND = 2**31 - 2  # training counts its rounds from 0, and evaluation has the last one
GOLD_ROWS = 16
ANSWERS, MORE_ANSWERS = 64, 256
CORRECTNESS = ("accuracy", "choice", "exact", "numeric", "reasoning_gym")  # of these it is known what they have to say
SKIP = "--no-preflight (in a pipeline --STAGE.no-preflight) leaves this check out"


def check(work: Workspace) -> None:
    """Scores gold and empty answers, samples from the policy, and says what it saw.

    Raises:
      ConfigError: almost all prompts are too long.
      GuardStop: a reward is wrong about a gold or an empty answer, or no group of answers has a signal.
    """
    stage = work.stage
    groups = [max(1, n // stage.group) for n in (ANSWERS, MORE_ANSWERS)]
    asked, _, _ = asking.take(work.mixture, 0, max(GOLD_ROWS, sum(groups)), work.template, stage.engine.max_prompt_tokens)
    with work.phase("preflight"):
        check_rewards(work, asked[:GOLD_ROWS])
        answers = sample(work, asked[: groups[0]])
        silent = without_signal(work, answers)
        if silent.all():
            work.display.note(f"preflight: no signal in {len(answers.rewards)} answers; sampling more before judging")
            answers = sample(work, asked[groups[0] : sum(groups)])
            silent = without_signal(work, answers)
        tell(work, answers, silent)
        if silent.all():
            raise GuardStop(f"no signal: {cause(work, answers)}; {SKIP}")
        if (cut := (answers.trajectories.finish == 0).mean()) > 0.5:
            cap = longest(answers)
            told = f"{cut:.0%} of the answers were cut at {cap} tokens; raise sampling.max_new_tokens"
            work.display.note(f"preflight: WARNING: {told}")


def without_signal(work: Workspace, answers: Answers) -> np.ndarray:
    """bool[Q]: groups from which nothing is learned. A critic compares all answers with each other; a teacher has something to
    say about every one."""
    stage = work.stage
    compared = stage.group if stage.advantage == "group" else len(answers.rewards)
    return no_signal(answers.rewards, compared) & (not stage.teacher)


# -- Rewards


def gold_answer(row: dict, prefill: str) -> str | None:
    """The assistant's turn that must be right: the row's ``gold``, or a short thought and the row's answer in R1-Zero's format.
    None if the row has no answer.

    Args:
      prefill: what the template already wrote of the turn.
    """
    if row.get("gold") is not None:
        return row["gold"]
    if row["answer"] is None:
        return None
    answer = row["answer"]
    if isinstance(answer, list) and answer:  # any of them is right
        answer = answer[0]
    if isinstance(answer, int) and isinstance(row.get("options"), list) and 0 <= answer < len(row["options"]):
        answer = row["options"][answer]
    if "</think>" in prefill:
        return f"{prefill}<answer>{answer}</answer>"
    return f"{prefill or '<think>'}It is {answer}. </think> <answer>{answer}</answer>"


def check_rewards(work: Workspace, asked: list[Question]) -> None:
    """Raises GuardStop if a correctness reward gives a gold answer less than 1, or an empty one more than 0, or if any reward
    fails on every gold answer. What other rewards give is only shown."""
    known = [(q, gold) for q in asked if (gold := gold_answer(q.row, q.prefill)) is not None]
    golds = score(work, [q for q, _ in known], [gold for _, gold in known])
    empties = score(work, asked, [q.prefill for q in asked])
    for name in dict.fromkeys(name for scores in golds for name in scores):
        mine = [scores[name] for scores in golds if name in scores]
        if all(s.status != "ok" for s in mine):
            raise GuardStop(
                f"reward {name} fails on all of {len(mine)} gold answers, the first {mine[0].status}: {mine[0].why}; {SKIP}"
            )
    for (question, gold), scores in zip(known, golds, strict=True):
        judge(question, gold, scores, right=True)
    for question, scores in zip(asked, empties, strict=True):
        judge(question, question.prefill, scores, right=False)
    earned = {}
    for what, found in (("gold", golds), ("empty", empties)):
        names = dict.fromkeys(name for scores in found for name in scores)
        means = earned[what] = {name: np.mean([s[name].value for s in found if name in s]) for name in names}
        work.display.note(
            f"preflight: rewards of {len(found)} {what} answers: "
            + (", ".join(f"{name} {mean:.3g}" for name, mean in means.items()) or "none, the rows have no answer")
        )
    if blind := [name for name, mean in earned["gold"].items() if mean <= earned["empty"].get(name, mean - 1)]:
        work.display.note(
            f"preflight: WARNING: {', '.join(blind)} gives a gold answer no more than an empty one; is this meant? "
            f"The first gold answer is {known[0][1]!r:.200}"
        )


def score(work: Workspace, asked: list[Question], completions: list[str]) -> list[dict[str, Score]]:
    scoring = asking.Scoring(work.pool, work.weights)
    tokens = [work.tokenizer.encode(text.removeprefix(q.prefill)) for q, text in zip(asked, completions, strict=True)]
    scoring.submit(range(len(asked)), asked, completions, tokens)
    return scoring.scores()


def judge(question: Question, completion: str, scores: dict[str, Score], *, right: bool) -> None:
    for name, score in scores.items():
        known = split_options(name)[0] in CORRECTNESS
        if not known or (score.value == (1.0 if right else 0.0) and score.status == "ok"):
            continue
        failed = "" if score.status == "ok" else f" ({score.status})"
        advice = (
            "correct the row's 'answer', give it a 'gold' completion, or choose a reward that fits"
            if right
            else "an empty answer must earn nothing: correct the row's 'answer', or the reward"
        )
        raise GuardStop(
            f"reward {name} gives {score.value:g}{failed} to the {'gold' if right else 'empty'} answer {completion!r:.120} of "
            f"row {question.name}, source {question.row['source']!r}, prompt {str(question.row['prompt'])!r:.80}: "
            f"{score.why or 'no reason given'}; {advice}; {SKIP}"
        )


# -- Signal


def sample(work: Workspace, asked: list[Question]) -> Answers:
    """``group`` answers to each question, on a random stream that training does not use."""
    stage = work.stage
    cap = dict(stage.length_schedule).get(0, stage.sampling.max_new_tokens)
    work.load_sampler()
    return asking.sample(
        asked,
        sampler=work.sampler,
        pool=work.pool,
        tokenizer=work.tokenizer,
        sampling=dataclasses.replace(stage.sampling, max_new_tokens=cap),
        samples=stage.group,
        round=ROUND,
        weights=work.weights,
        progress=work.display.advance,
    ).scored()


def tell(work: Workspace, answers: Answers, silent: np.ndarray) -> None:
    """One line about the answers, and for each reward the answer that it likes best."""
    parts = [f"pass rate {correct(work, answers).mean():.2f}"]
    rewards = dict.fromkeys(name for scores in answers.scores for name in scores)
    if "format" in rewards:
        parts.append(f"format rate {np.nanmean(answers.values('format')):.2f}")
    parts.append(f"truncated {(answers.trajectories.finish == 0).mean():.2f}")
    parts.append(f"groups with signal {(~silent).sum()} of {len(silent)}")
    work.display.note(f"preflight: {len(answers.rewards)} answers: {', '.join(parts)}")
    for i in dict.fromkeys(int(np.nanargmax(answers.values(name))) for name in rewards):
        scores = {name: (s.value, s.why) for name, s in answers.scores[i].items()}
        work.display.sample(work.tokenizer.decode(answers.questions[i].ids), answers.completions[i], scores, work.step)


def longest(answers: Answers) -> int:
    """Tokens of the longest answer."""
    return int((answers.trajectories.length - answers.trajectories.prompt_length).max())


def cause(work: Workspace, answers: Answers) -> str:
    """Why all answers of every group earn the same, most likely, and what to do about it."""
    count = len(answers.rewards)
    failed = [(name, s) for scores in answers.scores for name, s in scores.items() if s.status != "ok"]
    if failed:
        name, first = failed[0]
        return f"{len(failed)} scores of {count} answers failed, the first: reward {name} {first.status}: {first.why}"
    right, cut = correct(work, answers), (answers.trajectories.finish == 0).mean()
    by_format = answers.values("format") if any("format" in s for s in answers.scores) else None
    formless = by_format is not None and not np.nansum(by_format)
    if right.all():
        return f"all {count} answers are right already; choose a harder task"
    if cut > 0.5 and not right.any():
        cap = longest(answers)
        if formless:
            return (
                f"{cut:.0%} of {count} answers were cut at {cap} tokens and none keeps the format: read some, and raise "
                "sampling.max_new_tokens if they make sense; if not, begin with (more) SFT"
            )
        return f"{cut:.0%} of {count} answers were cut at {cap} tokens; raise sampling.max_new_tokens"
    if right.any():
        return f"the {count} answers to a question are all alike; raise sampling.temperature or group"
    if formless:
        return (
            f"none of {count} answers keeps the format and none is right; begin with SFT on a few answers in the format, or "
            "use a template that asks for it"
        )
    return f"all {count} answers are wrong: the task is too hard to start from; use an easier one, or begin with SFT"
