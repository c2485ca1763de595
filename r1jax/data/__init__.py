"""Rows, and how they become tokens: sources, mixing, templates, tokenizers, packing."""
