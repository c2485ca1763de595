"""``python -m r1jax`` is the command ``r1jax``."""

import sys

from r1jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
