"""Anvil: the project's own 3.4 M-parameter base model, its corpus and the demo's dataset."""
