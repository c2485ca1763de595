"""GRPO on the quickstart's sums: the first of six objectives that differ in nothing else.

    r1jax train compare_grpo --rl.seed 0 --run-dir runs/compare_grpo-0      # and seeds 1 and 2
    r1jax compare runs/compare_* --out runs/compare.png                     # the table and the curves of all that were run

`compare_ppo_1`, `compare_ppo_095`, `compare_dr_grpo`, `compare_dapo` and `compare_gspo` are this one with another objective,
after R1's comparison of PPO and GRPO (arXiv 2501.12948v2, A.3) and the papers that each names. All begin with the same SFT on
noisy traces, see the same questions, and learn from 512 answers a round in 4 updates, so that ratios move and clipping counts.

Device    two cores of a CPU; guessed by the quickstart's times, 4 minutes a run. Not run here to its end.
Memory    below 2 GiB.
Expected  held-out accuracy rises from where SFT leaves it. R1's authors found PPO with lambda 1 nearly as good as GRPO, and
          with 0.95 much worse, on mathematics with a 16B model; whether so few tokens show it is not known.
"""

from dataclasses import dataclass, field

from r1jax.config import GRPO, SFT, Eval, Log, Optimizer, Pipeline
from r1jax.config.loading import load_config

QUICK = load_config("quickstart")[1]
OF_QUICK = {name: vars(QUICK.grpo)[name] for name in ("sources", "sequence_length", "micro_batch", "engine", "sampling")}


@dataclass(frozen=True)
class Comparison(Pipeline):
    sft: SFT = QUICK.sft
    rl: GRPO = field(
        default_factory=lambda: GRPO(
            init="sft",
            steps=160,
            questions=8,
            group=16,
            minibatches=4,
            kl_beta=0.0,  # none of these lets the policy go far
            optimizer=Optimizer(lr=2e-4, lr_end=2e-5, warmup_steps=8, weight_decay=0.0),
            eval=Eval(every=16, final_samples=8),
            log=Log(tensorboard=False),
            **OF_QUICK,
        )
    )


def config() -> Comparison:
    return Comparison()
