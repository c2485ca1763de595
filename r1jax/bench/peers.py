"""The same work done by other packages. They are imported when they are asked for: nothing of r1jax needs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from r1jax import hub
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
