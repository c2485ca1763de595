"""On-policy distillation: a student's own tokens, judged by a teacher; and the parts of DAPO that the loop plays."""

import dataclasses
from dataclasses import dataclass, field
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tokenizers

from r1jax import config, loading, sharding
from r1jax.advantages import group_advantages
from r1jax.config import ConfigError
from r1jax.data.tokenizer import Tokenizer, byte_tokenizer
from r1jax.eval.answers import Answers, Question
from r1jax.models import decoder
from r1jax.plan import spent
from r1jax.rewards import Score
from r1jax.stages import grpo, pipeline
from r1jax.stages.prepare import open_teacher
from r1jax.types import Trajectories

pytestmark = pytest.mark.timeout(1800)  # seconds; on an idle machine a test takes 5 to 20


# -- DAPO


RULE = f"{tiny.FILE}:checksum"


def answers(accuracy, total, lengths):
    """Two answers to each question, with prompts of 3 tokens."""
    n = len(total)
    length = 3 + np.array(lengths, np.int32)
    tokens, each = np.zeros((n, length.max()), np.int32), np.arange(n, dtype=np.int32)
    t = Trajectories(
        tokens, np.full(n, 3, np.int32), length, tokens > 0, tokens * 0.0, np.ones(n, np.int8), each // 2, each % 2
    )  # fmt: skip
    asked = [Question({"source": "tiny"}, [1, 2, 3], "", i // 2) for i in range(n)]
    return Answers(asked, t, [""] * n, [{RULE: Score(float(x))} for x in accuracy], np.array(total, np.float32))


def work(**changes):
    settings = {"questions": 2, "minibatches": 1, "group": 2, "dynamic_sampling": 2, "kl_beta": 0.0}
    counted = []
    stage = tiny.grpo(**settings | changes)
    return SimpleNamespace(stage=stage, model=stage.model, step=0, replaced=0, counted=counted, count=counted.append)


@pytest.mark.parametrize("by, replaced", [(RULE, 1), ("", 0)])
def test_groups_are_compared_by_the_reward_that_is_named(by, replaced, monkeypatch):
    """The second group is as right in both answers, and only another reward tells them apart."""
    first = answers([0, 1, 1, 1], [0.5, 1, 2, 1], [1, 1, 1, 1])
    more = answers([1, 0], [2, 3], [1, 1])
    asked = []
    monkeypatch.setattr(grpo, "find_answers", lambda work, count: asked.append(count) or (first if count == 2 else more))
    w = work(dynamic_reward=by)
    found = grpo.next_answers(w)
    assert w.replaced == replaced and asked == [2, 1][: 1 + replaced]
    assert found.rewards.tolist() == ([0.5, 1, 2, 3] if replaced else [0.5, 1, 2, 1])
    # What was sampled of the group that gave way was paid for.
    lost = spent.sampled(tiny.MOE, answers([1, 1], [2, 1], [1, 1]).trajectories, 2)
    assert lost > 0 and w.counted == [{"rollout": lost}][:replaced]


def test_what_an_answer_counts_by_hand():
    found = answers([1, 1, 1, 1], [1, 0, 0, 0.5], [4, 6, 8, 5])
    np.testing.assert_array_equal(grpo.advantages_of(work(), found), group_advantages(np.float32([1, 0, 0, 0.5]), 2))
    critic = work(advantage="gae", dynamic_sampling=0)
    np.testing.assert_array_equal(grpo.advantages_of(critic, found), np.float32([1, 0, 0, 0.5]))
    assert not grpo.advantages_of(work(advantage="none", teacher="x", dynamic_sampling=0), found).any()


# -- A teacher


@dataclass(frozen=True)
class Distillation(config.Pipeline):
    """A dense student that never sees a row's completion, and its teacher, a mixture of experts."""

    teacher: config.SFT = field(default_factory=lambda: tiny.sft(steps=1, sequence_length=32))
    student: config.GRPO = field(
        default_factory=lambda: tiny.grpo(
            model=tiny.DENSE, seed=5, teacher="teacher", advantage="none", group=1, questions=32, minibatches=4, steps=32,
            kl_beta=0.0, clip_high=10.0, micro_batch=32, engine=config.Engine(slots=64, max_prompt_tokens=8, chunk=4),
            optimizer=config.Optimizer(lr=0.02, warmup_steps=0, weight_decay=0.0),
            checkpoint=config.Checkpoint(every=4, keep=20), workers=config.Workers(count=1, timeout=60.0),
        )
    )  # fmt: skip


def distributions(name: str) -> np.ndarray:
    """Log-probs of every token that may begin an answer to one of 40 prompts, by the decoder itself."""
    opened = loading.open_model(name)
    specs, mesh = decoder.specs(opened.model), sharding.make_mesh(config.Mesh(fsdp=1))
    params = opened.load(specs, sharding.param_shardings(specs, mesh, sharding.TRAIN))
    ids = [opened.tokenizer.encode(row["prompt"]) for row in tiny.rows("train", 40)]
    tokens = jnp.array([[0] * (6 - len(x)) + x for x in ids])
    seen = jnp.array([[0] * (6 - len(x)) + [1] * len(x) for x in ids])
    positions = jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
    hidden, _, _ = decoder.forward(params, tokens, positions, seen, model=opened.model)
    logits = np.asarray(decoder.logits(params, hidden[:, -1], opened.model), np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_student_comes_nearer_to_its_teacher(tmp_path):
    run = tmp_path / "run"
    assert pipeline.train(Distillation(), name="distillation", run_dir=str(run)) == 0
    teacher = distributions(str(run / "teacher"))

    def kl(name):
        student = distributions(name)
        return (np.exp(student) * (student - teacher)).sum(-1).mean()

    before, after = kl(str(run / "student@4")), kl(str(run / "student"))
    assert after < 0.7 * before  # 0.41 to 0.49 of it for four seeds; learning nothing leaves it, and a wrong sign adds
    rows = tiny.metrics(run / "student")
    first, last = (np.mean([row["teacher/kl"] for row in part]) for part in (rows[:4], rows[-4:]))
    assert last < first
    assert rows[0]["ratio"] == pytest.approx(1, abs=1e-6) and "groups/no_signal" not in rows[0]


def test_a_teacher_must_come_before_its_student():
    wrong = Distillation(student=dataclasses.replace(Distillation().student, teacher="student"))
    with pytest.raises(ConfigError, match="student: teacher is 'student', which is no stage before it"):
        wrong.inputs()
    assert Distillation().inputs() == {"teacher": (), "student": ("teacher",)}


def test_a_teacher_with_other_tokens_is_refused_by_name():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<|end|>": 1, "b": 2}, "a"))
    opened = loading.Opened("elsewhere", tiny.DENSE, Tokenizer(backend, (1,)), config.Text(), None)
    stage = tiny.grpo(teacher="elsewhere", init="mine", model=None)
    said = r"teacher 'elsewhere' and policy 'mine' have different tokenizers \(3 and 262 tokens, 2 of the"
    with pytest.raises(ConfigError, match=said):
        open_teacher(stage, byte_tokenizer(), {"elsewhere": opened})
    same = dataclasses.replace(opened, found_tokenizer=byte_tokenizer())
    assert open_teacher(stage, byte_tokenizer(), {"elsewhere": same}) is same
