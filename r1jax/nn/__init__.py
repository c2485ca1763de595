"""Layers as functions of arrays, each beside the specs of its parameters."""
