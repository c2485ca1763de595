"""``python -m r1jax`` is the command ``r1jax``."""

from r1jax.cli import command

if __name__ == "__main__":
    command()
