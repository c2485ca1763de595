"""DeepSeek-R1's training system in JAX. Start reading at ``r1jax/stages/grpo.py``."""

__version__ = "0.1.0"
