"""The demo: one run, end to end, as a user would do it."""
