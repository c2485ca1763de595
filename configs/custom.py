"""Your rows and your reward: SFT on worked answers, then GRPO on what the rewards say. Copy this file and change it.

    cp configs/custom.py mine.py
    r1jax train mine.py --dry-run     # checks rows and rewards, shows memory and a batch as text
    r1jax train mine.py               # settings by flag: --sft.init Qwen/Qwen2.5-1.5B-Instruct --grpo.steps 300

rows.jsonl holds a row a line: {"prompt": "2 + 3 =", "answer": "5", "completion": "<think>2 + 3</think> <answer>5</answer>"}.
SFT learns "completion"; rewards read "answer", and whatever else you put there. A tenth of the rows, by the prompt's hash, is
held out.

Device    one GPU of 24 GB. Not run there; a test runs this file to its end on a CPU, with a tiny model.
Memory    11.3 GiB with the 0.5B model: computed, the table that --dry-run prints.
Expected  whatever your task gives: GRPO learns from questions whose answers differ, and counts them before its first step.
"""

from dataclasses import dataclass, field

from r1jax.config import GRPO, SFT, Engine, Optimizer, Pipeline, Sampling, Source


def concise(prompt, completion, row):
    """Up to 1, the shorter the answer."""
    return 1 / (1 + len(completion) / 400)


REWARDS = {"accuracy": 1.0, "mine.py:concise": 0.2}  # the first says what is right; yours is named by its file
ROWS = Source(path="rows.jsonl", name="mine", options={"test_share": 0.1}, rewards=REWARDS)
SHARED = {
    "sources": (ROWS,),
    "sampling": Sampling(max_new_tokens=512),
    "engine": Engine(slots=128, max_prompt_tokens=512),
    "sequence_length": 1024,
    "micro_batch": 4,
    "matmul_dtype": "bfloat16",
    "remat": "layer",
}


@dataclass(frozen=True)
class Custom(Pipeline):
    sft: SFT = field(default_factory=lambda: SFT(init="Qwen/Qwen2.5-0.5B-Instruct", batch=32, **SHARED))
    grpo: GRPO = field(
        default_factory=lambda: GRPO(
            init="sft", questions=16, minibatches=1, kl_beta=0.0, optimizer=Optimizer(lr=1e-6), **SHARED
        )
    )


def config() -> Custom:
    return Custom()
