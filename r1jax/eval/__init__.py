"""Answers to problems, and what they say about a model."""
