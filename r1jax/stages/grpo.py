"""R1's reinforcement learning: prompts -> rollout -> rewards -> advantages -> packed batch -> update -> checkpoint.

R1-Zero, RL-1 and RL-2 are this stage with other configs. Departures from the papers are fields of ``config.GRPO``, each with
its source.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from r1jax.advantages import group_advantages, no_signal
from r1jax.data.packing import pack_sequences
from r1jax.eval import answers as asking
from r1jax.eval.answers import Answers, Question
from r1jax.losses.sums import denominator
from r1jax.observe import reflection
from r1jax.plan import spent
from r1jax.stages import preferences, rollouts
from r1jax.stages.evaluation import hold_out, stop_if_scores_fail
from r1jax.stages.rollouts import length_cap, next_questions
from r1jax.stages.workspace import Workspace, told
from r1jax.types import PackedBatch, Trajectories


def train(work: Workspace) -> None:
    """Runs to ``stage.steps``, from wherever the workspace was restored."""
    while work.step < work.stage.steps:
        with work.profile.round(work.step + 1, work.step + work.stage.minibatches):
            play_round(work)


def play_round(work: Workspace) -> None:
    """One rollout and the updates that it is good for."""
    began = work.step
    answers = next_answers(work)
    advantages = advantages_of(work, answers)
    write_samples(work, answers, advantages)
    minibatches = split(work, answers, advantages)
    fresh = work.step == work.cursor.refreshed
    teacher = work.teacher and work.teacher.model
    work.count(spent.of_round(work.stage, work.model, answers.trajectories, fresh_reference=fresh, teacher=teacher))
    rollouts.sample_ahead(work)
    with work.phase("score", len(minibatches), "batches"):
        batches = [pack(work, answers, advantages, rows, first=i == 0) for i, rows in enumerate(minibatches)]
        if work.critic is not None:
            batches = work.critic.judge(work.critic_state, batches)
    with work.phase("update", len(batches), "updates"):
        metrics = told([work.update(*batch) for batch in batches])  # the device has all updates before it is waited for
        work.display.advance(len(batches), int(sum(m["tokens"] for m in metrics)))
    each = work.seconds["update"] / len(batches)
    for i, rows in enumerate(minibatches):
        work.seconds["update"] = each
        log(work, answers, rows, metrics[i], began + i + 1)
    work.cursor.round += 1
    end_of_round(work, began)


def next_answers(work: Workspace) -> Answers:
    """Answers to a round's questions. With ``dynamic_sampling``, groups without a signal give way to answers to the questions
    that come next."""
    stage = work.stage
    answers = find_answers(work, stage.questions * stage.minibatches)
    work.replaced = 0
    for _ in range(stage.dynamic_sampling):
        earned = answers.values(stage.dynamic_reward) if stage.dynamic_reward else answers.rewards
        silent = no_signal(earned, stage.group)
        if not silent.any():
            break
        rows = np.repeat(silent, stage.group)
        lost = jax.tree.map(lambda x, rows=rows: x[rows], answers.trajectories)
        work.count({"rollout": spent.sampled(work.model, lost, stage.group)})  # ``of_round`` counts those that stay
        more = find_answers(work, int(silent.sum()))
        answers = replace_groups(answers, silent, more)
        work.replaced += int(silent.sum())
    return answers


def advantages_of(work: Workspace, answers: Answers) -> np.ndarray:
    """float32[N]: each answer against the others to its question; with a critic its reward, which that one compares with what
    it expected; 0 where the teacher alone counts."""
    stage = work.stage
    if stage.advantage == "group":
        return group_advantages(answers.rewards, stage.group, std=stage.advantage_std)
    return answers.rewards if stage.advantage == "gae" else np.zeros_like(answers.rewards)


def find_answers(work: Workspace, questions: int) -> Answers:
    """The answers to so many questions."""
    if work.stage.off_policy:
        return preferences.scored(work, rollouts.answers(work, questions))
    return preferences.scored(work, roll_out(work, next_questions(work, questions, work.step)))


def replace_groups(answers: Answers, where: np.ndarray, new: Answers) -> Answers:
    """``answers`` with ``new`` in the place of the groups at which ``where``, bool[Q], is true."""
    count, group = len(answers.rewards), len(answers.rewards) // len(where)
    rows = np.arange(count)
    rows[np.repeat(where, group)] = count + np.arange(len(new.rewards))
    width = max(a.trajectories.tokens.shape[1] for a in (answers, new))

    def joined(*parts: np.ndarray) -> np.ndarray:
        def pad(x: np.ndarray) -> np.ndarray:
            return x if x.ndim == 1 else np.pad(x, [(0, width - x.shape[1] if axis == 1 else 0) for axis in range(x.ndim)])

        padded = [pad(x) for x in parts]
        return np.concatenate(padded)[rows]

    def chosen(*parts: list) -> list:
        both = [x for part in parts for x in part]
        return [both[i] for i in rows]

    return Answers(
        chosen(answers.questions, new.questions), jax.tree.map(joined, answers.trajectories, new.trajectories),
        chosen(answers.completions, new.completions), chosen(answers.scores, new.scores), joined(answers.rewards, new.rewards),
    )  # fmt: skip


def roll_out(work: Workspace, asked: list[Question]) -> Answers:
    """``group`` answers to each question by the current policy, scored as they come.

    Raises:
      GuardStop: too many scores failed.
    """
    stage = work.stage
    sampling = dataclasses.replace(stage.sampling, max_new_tokens=length_cap(stage, work.step))
    work.load_sampler()
    with work.phase("rollout", len(asked) * stage.group, "answers") as rollout:
        sampled = asking.sample(
            asked, sampler=work.sampler, pool=work.pool, tokenizer=work.tokenizer, sampling=sampling, samples=stage.group,
            round=work.cursor.round, weights=work.weights, progress=work.display.advance,
        )  # fmt: skip
    work.rollout_rate = rollout.tokens_per_s
    with work.phase("reward"):
        answers = sampled.scored()
    stop_if_scores_fail(work, answers)
    return answers


def split(work: Workspace, answers: Answers, advantages: np.ndarray) -> list[np.ndarray]:
    """The rows of each update: whole groups in an order drawn from (seed, round). One inner epoch, cut at the last step."""
    stage = work.stage
    groups = len(advantages) // stage.group
    order = np.random.default_rng([stage.seed, work.cursor.round]).permutation(groups)
    rows = (order[:, None] * stage.group + np.arange(stage.group)).reshape(stage.minibatches, -1)
    return list(rows[: stage.steps - work.step])


def pack(
    work: Workspace, answers: Answers, advantages: np.ndarray, rows: np.ndarray, *, first: bool
) -> tuple[PackedBatch, int, float]:
    """One update's batch on the mesh, with the log-probs of pi_old and of the reference: (batch, micro-batches in it,
    denominator). In the ``first`` update of a round the policy is pi_old, and before its own first update also the reference:
    the update then takes its own log-probs, so that the ratio is exactly 1 and the KL exactly 0, and needs no second pass."""
    stage, t, trainer = work.stage, answers.trajectories, work.trainer
    first = first and not stage.kl_in_reward  # the rewards of its tokens are wanted before the update
    spans = [slice(0, int(t.length[i])) for i in rows]
    host, count = pack_sequences(
        [t.tokens[i, s] for i, s in zip(rows, spans, strict=True)],
        [t.loss_mask[i, s] for i, s in zip(rows, spans, strict=True)],
        rows=stage.micro_batch,
        length=stage.sequence_length,
        advantages=advantages[rows],
        sampler_logprobs=[t.logprobs[i, s] for i, s in zip(rows, spans, strict=True)],
        normalize=stage.normalize,
        micro_batches=-(-len(rows) // stage.micro_batch),
        ways=trainer.ways,
        group=stage.group if stage.share_prompts else 1,
        prompt_length=t.prompt_length[rows],
        routes=None if t.routes is None else [t.routes[i, s] for i, s in zip(rows, spans, strict=True)],
    )
    batch = trainer.put(host)
    if stage.old_logprobs == "sampler":
        batch = batch.replace(old_logprobs=batch.sampler_logprobs)
    elif not first:
        batch = batch.replace(old_logprobs=trainer.logprobs(work.state.params, batch, count))
    if trainer.has_reference:
        same = work.step == work.cursor.refreshed
        if same and not first and stage.old_logprobs == "trainer":
            batch = batch.replace(ref_logprobs=batch.old_logprobs)
        elif not (same and first):
            # Other weights would not have made the recorded choices: the reference routes by itself.
            own = batch.replace(routes=None)
            batch = batch.replace(ref_logprobs=trainer.logprobs(trainer.reference(work.state), own, count))
    if work.teacher is not None:
        batch = batch.replace(teacher_logprobs=work.teacher.logprobs(batch, count))
    cap = length_cap(stage, work.step)
    return batch, count, denominator(stage.normalize, answers=len(rows), tokens=int(host.mask.sum()), cap=cap)


def log(work: Workspace, answers: Answers, rows: np.ndarray, metrics: dict[str, float], step: int) -> None:
    """One line per update: the metrics of its own answers."""
    stage, t = work.stage, answers.trajectories
    mine = Answers(
        [answers.questions[i] for i in rows], jax.tree.map(lambda x: x[rows], t), [answers.completions[i] for i in rows],
        [answers.scores[i] for i in rows], answers.rewards[rows],
    )  # fmt: skip
    values = metrics | asking.reward_metrics(mine) | reflection.metrics(mine.completions)
    if stage.advantage == "group":
        values["groups/no_signal"] = float(no_signal(mine.rewards, stage.group).mean())
    if stage.dynamic_sampling:
        values["groups/replaced"] = float(work.replaced)
    values |= work.data_metrics()
    values["round"] = float(work.cursor.round)
    values["tokens_per_s/rollout"] = work.rollout_rate
    values |= work.usage or work.sampler.usage.metrics(work.sampler.slots)
    if stage.off_policy:
        values |= age_metrics(mine.trajectories, step - 1)
    values["rollout/reshard_bytes"] = float(work.sampler.reshard_bytes)
    work.write(step, values)


def age_metrics(t: Trajectories, step: int) -> dict[str, float]:
    """How many updates lie between the weights that sampled a token and those of ``step``, over all tokens, and the share of
    answers that were not sampled by one policy."""
    ages = step - t.version[t.loss_mask]
    several = [np.ptp(versions[mask]) > 0 for versions, mask in zip(t.version, t.loss_mask, strict=True)]
    return {
        "rollout/age_mean": float(ages.mean()),
        "rollout/age_max": float(ages.max()),
        "rollout/partial": float(np.mean(several)),
    }


def write_samples(work: Workspace, answers: Answers, advantages: np.ndarray) -> None:
    """Rollouts into samples.jsonl: whole groups side by side would be alike, so they are spread over the round."""
    log = work.stage.log
    count = len(advantages) if log.samples_per_step < 0 else min(log.samples_per_step, len(advantages))
    chosen = np.linspace(0, len(advantages) - 1, count).astype(int) if count else []
    rows = [answers.sample(i, advantage=float(advantages[i])) for i in chosen]
    if work.samples is not None and rows:
        work.samples.write(work.step + 1, rows)
    if len(chosen) and log.sample_every and work.cursor.round % max(1, log.sample_every // work.stage.minibatches) == 0:
        show(work, answers, int(chosen[0]))


def show(work: Workspace, answers: Answers, i: int) -> None:
    """One answer on the terminal."""
    prompt = work.tokenizer.decode(answers.questions[i].ids)
    work.display.sample(prompt, answers.completions[i], {n: (s.value, s.why) for n, s in answers.scores[i].items()}, work.step)


def end_of_round(work: Workspace, began: int) -> None:
    """Refreshes the reference, evaluates, saves and exports, whenever the round crossed a multiple of their periods."""
    stage, step = work.stage, work.step
    last = step >= stage.steps

    def due(period: int) -> bool:
        return period > 0 and step // period > began // period

    if work.trainer.keep_reference and due(stage.reference_every):
        work.state = work.trainer.refresh_reference(work.state)
        work.cursor.refreshed = step
    score = None
    if stage.eval.every and (due(stage.eval.every) or last):
        rollouts.settle(work)
        values = hold_out(work, last)
        score = values["eval/pass@1"]
    if last or due(stage.checkpoint.every):
        work.save(score)
    if stage.export.every and (due(stage.export.every) or last):
        work.export()
    work.stop_if_terminated()
