"""The scheduler: owns runs, attempts, tasks and nodes, and is the only writer of run state."""
