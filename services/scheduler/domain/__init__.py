"""The rules of a run's life: plain values and pure functions, without clock, socket or SQL."""
