"""The same work done by other packages. They are imported when they are asked for: nothing of r1jax needs them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from r1jax import hub
from r1jax.bench.fastest import fastest
from r1jax.bench.memory import resident, risen
from r1jax.bench.prompts import checksum
from r1jax.config import ConfigError


def hf_logprobs(name: str, rows: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
    """Log-probability of each token of each row given those before it, by transformers in float32 on the CPU.

    Args:
      name: a Hugging Face directory or Hub id.
      rows: int[n] each, n >= 0.

    Returns:
      float32[max(n - 1, 0)] per row.

    Raises:
      ConfigError: transformers or torch is not installed, or it does not load the model. It never runs a model's own code.
    """
    try:
        import torch
        import transformers
    except ImportError as e:
        raise ConfigError(f"--against hf needs torch and transformers ({e}); pip install torch transformers") from e
    directory = hub.resolve(name)
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f"--against hf: transformers reads a Hugging Face directory or Hub id, which {name} is not")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as e:
        raise ConfigError(f"--against hf: transformers does not load {name}: {e}") from e

    @torch.no_grad()
    def one(row: np.ndarray) -> np.ndarray:
        tokens = torch.tensor(row, dtype=torch.long)
        logits = model(tokens[None]).logits[0, :-1] / temperature
        return (logits.gather(1, tokens[1:, None])[:, 0] - logits.logsumexp(1)).numpy()

    return [one(row) if len(row) > 1 else np.zeros(0, np.float32) for row in rows]


# -- The process that measure.Peer starts


def main() -> None:
    """Takes a job as a line of JSON, does its work once for each further line, and answers each with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print is no answer

    def say(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    def wait() -> None:
        if not sys.stdin.readline():
            os._exit(0)  # we are no longer wanted

    job = json.loads(sys.stdin.readline())
    work = {"rollout": rollout, "update": update, "grpo": grpo}[job["work"]]
    try:
        torch = _torch(job)
        say(products=_products(torch, job))
        work(torch, job, wait, say)
    except ConfigError as error:
        say(error=str(error))


def _torch(job: dict):
    """torch with all of the cores that this process may use, or as many as OMP_NUM_THREADS says."""
    try:
        import torch
        import transformers
    except ImportError as e:
        raise ConfigError(f"--against needs torch and transformers ({e}); pip install 'r1jax[bench]'") from e
    transformers.utils.logging.set_verbosity_error()
    if job["device"] == "cuda" and not torch.cuda.is_available():
        raise ConfigError("jax runs on a GPU, and this torch does not find it; install torch with CUDA")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores))
    torch.manual_seed(job["seed"])
    return torch


def _products(torch, job: dict) -> list[dict]:
    """The products that were probed with jax, by torch: fields of ``results.Product``. A limit that one package reaches is the
    machine's."""
    found = []
    for rows, inner, outer in job["shapes"]:
        how = {"dtype": getattr(torch, job["dtype"]), "device": job["device"]}
        x, w = torch.ones(rows, inner, **how), torch.ones(inner, outer, **how)
        seconds = fastest(lambda _, x=x, w=w: x @ w, x, lambda _: _clock(torch, job))
        shape = {"rows": rows, "inner": inner, "outer": outer}
        found.append({"package": "torch", "dtype": job["dtype"], **shape, "flops_per_s": 2 * rows * inner * outer / seconds})
    return found


def _load(torch, job: dict):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["directory"], dtype=getattr(torch, job["dtype"]), trust_remote_code=False
    )
    return model.to(job["device"])


def _clock(torch, job: dict) -> float:
    if job["device"] == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(torch, job: dict, before: int | None) -> int | None:
    """As ``measure.peak_bytes``."""
    return torch.cuda.max_memory_allocated() if job["device"] == "cuda" else risen(before)


def rollout(torch, job: dict, wait: Callable[[], None], say: Callable[..., None]) -> None:
    """Batches of ``slots`` prompts, each until its longest answer has its length; only tokens up to each answer's own length
    count. The answers are as ``generate`` gives them, without log-probabilities."""
    import transformers

    class Lengths(transformers.StoppingCriteria):
        """A row is done at its own length."""

        def __init__(self, limits):
            self.limits = limits

        def __call__(self, input_ids, scores, **kwargs):
            return self.limits <= input_ids.shape[1]

    before = resident("VmRSS")
    model = _load(torch, job).eval()
    prompts = torch.tensor(job["prompts"], device=job["device"])
    limits = torch.tensor(job["lengths"], device=job["device"]) + prompts.shape[1]
    # Without an end token nothing ends before its length.
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0
    )

    @torch.inference_mode()
    def run(cut: int | None) -> int:
        tokens = 0
        for start in range(0, len(prompts), job["slots"]):
            part, ends = prompts[start : start + job["slots"]], limits[start : start + job["slots"]]
            most = cut or int(ends.max()) - prompts.shape[1]
            stop = transformers.StoppingCriteriaList([Lengths(ends)])
            made = model.generate(
                part, attention_mask=torch.ones_like(part), max_new_tokens=most, min_new_tokens=0, stopping_criteria=stop
            )
            tokens += int((ends.clamp(max=made.shape[1]) - prompts.shape[1]).sum())
        return tokens

    say()
    while True:
        wait()
        times = [_clock(torch, job)]
        run(1)
        times.append(_clock(torch, job))
        tokens = run(None)
        times.append(_clock(torch, job))
        prefill = times[1] - times[0]
        seconds = {"prefill": prefill, "decode": max(0.0, times[2] - times[1] - prefill)}
        say(seconds=seconds, notes={"tokens": tokens}, peak_bytes=_peak(torch, job, before))


def update(torch, job: dict, wait: Callable[[], None], say: Callable[..., None]) -> None:
    """GRPO's loss for ratios of 1, as a loop over micro-batches would have it, and AdamW in the model's own type."""
    before = resident("VmRSS")
    model = _load(torch, job).train()
    if job["remat"]:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **job["optimizer"])
    tokens = torch.tensor(job["tokens"], device=job["device"])
    advantages = torch.tensor(job["advantages"], device=job["device"])
    say()
    while True:
        wait()
        forward, total, began = 0.0, 0.0, _clock(torch, job)
        for start in range(0, len(tokens), job["micro_batch"]):
            rows = slice(start, start + job["micro_batch"])
            at = _clock(torch, job)
            logits = model(tokens[rows], use_cache=False).logits[:, :-1].float()
            targets = tokens[rows, 1:]
            logprobs = logits.gather(2, targets[..., None])[..., 0] - logits.logsumexp(2)
            ratio = torch.exp(logprobs - logprobs.detach())
            loss = -(ratio * advantages[rows, None]).mean(1).sum() / len(tokens)
            forward += _clock(torch, job) - at
            loss.backward()
            total += loss.item()
            del logits, logprobs, ratio, loss
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        seconds = {"forward": forward, "backward, step": _clock(torch, job) - began - forward}
        say(seconds=seconds, notes={"loss": total, "grad_norm": norm.item()}, peak_bytes=_peak(torch, job, before))


def grpo(torch, job: dict, wait: Callable[[], None], say: Callable[..., None]) -> None:
    """Steps of TRL's trainer, stopped before each until it is wanted."""
    try:
        import datasets
        import transformers
        import trl
    except ImportError as e:
        raise ConfigError(f"--against trl needs trl ({e}); pip install 'r1jax[bench]'") from e
    before = resident("VmRSS")
    marks: dict[str, float] = {}
    tokens = 0

    def reward(prompts, completions, completion_ids, **kwargs) -> list[float]:
        nonlocal tokens
        marks["sampled"] = _clock(torch, job)
        values = [checksum(p, c, {}) for p, c in zip(prompts, completions, strict=True)]
        tokens = sum(map(len, completion_ids))
        marks["scored"] = _clock(torch, job)
        return values

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 0:
                say()
            wait()
            marks["began"] = _clock(torch, job)

        def on_step_end(self, args, state, control, **kwargs):
            seconds = {
                "rollout": marks["sampled"] - marks["began"],
                "reward": marks["scored"] - marks["sampled"],
                "update": _clock(torch, job) - marks["scored"],
            }
            say(seconds=seconds, notes={"tokens": tokens}, peak_bytes=_peak(torch, job, before))

    answers = job["questions"] * job["group"]
    with tempfile.TemporaryDirectory() as out:
        args = trl.GRPOConfig(
            output_dir=out,
            model_init_kwargs={"dtype": job["dtype"]},
            use_cpu=job["device"] == "cpu",
            bf16=job["dtype"] == "bfloat16",
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=answers // job["micro_batch"],
            num_generations=job["group"],
            max_completion_length=job["new_tokens"],
            generation_kwargs={"min_new_tokens": job["new_tokens"]},
            max_steps=len(job["prompts"]) // job["questions"],
            beta=0.0,
            num_iterations=1,
            loss_type="grpo",
            shuffle_dataset=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            seed=job["seed"],
            dataloader_pin_memory=job["device"] == "cuda",
            **job["optimizer"],
        )
        trainer = trl.GRPOTrainer(
            model=job["directory"],
            reward_funcs=reward,
            args=args,
            train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in job["prompts"]]),
            callbacks=[Turns()],
        )
        trainer.train()


if __name__ == "__main__":
    main()
