"""The trainer's rules: plans, learning-rate schedule, time left, what a sound answer looks like."""
