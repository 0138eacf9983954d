"""Modelspec: models and hardware as numbers: shape, adapter, memory, duration, sizes, catalog."""
