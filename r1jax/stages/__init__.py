"""The stages of the recipe. ``grpo.py`` shows the whole way of the data on one screen."""
