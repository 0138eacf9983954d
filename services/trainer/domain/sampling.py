"""How often a run that trains is asked for samples.

They are made at checkpoints and count as training, as validation does: the clock runs from the
first step to the stored adapter. So their share of it has a bound that nobody has to set.
"""

# A reader does not look more often; and a short run shows its samples at its end alone.
SECONDS_BETWEEN_MIN = 60.0
COST_SHARE_MAX = 0.02


def samples_due(*, seconds_since: float, cost_seconds: float) -> bool:
    """Whether a checkpoint is the place for samples.

    Args:
        seconds_since: since the last samples, or since the attempt began to train.
        cost_seconds: what the last samples took; 0 when there were none.
    """
    return seconds_since >= max(SECONDS_BETWEEN_MIN, cost_seconds / COST_SHARE_MAX)
