"""Fused kernels by torch.compile, for the parts of a model whose shape is the row's alone.

Attention is left as it is: with packed rows it is another computation in every step, and would be
compiled again in every step. The feed-forward blocks and norms, where most computing is, see
nothing but the length of the row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Ends of the names that architectures give to these classes.
COMPILED_KINDS = ("mlp", "norm")


@contextmanager
def compiled(adapted: Any, *, wanted: bool, backend: str = "inductor") -> Iterator[int]:
    """The model with compiled parts while it trains; how many there are, and none of it after.

    A part that cannot be compiled on this card runs as it is: a slower run is better than none.
    """
    parts = _parts(adapted) if wanted else []
    before = torch._dynamo.config.suppress_errors
    torch._dynamo.config.suppress_errors = True
    try:
        for part in parts:
            # Dynamic: rows of any length share one compilation.
            part.compile(dynamic=True, backend=backend)
        yield len(parts)
    finally:
        for part in parts:
            part._compiled_call_impl = None
        torch._dynamo.config.suppress_errors = before


def _parts(adapted: Any) -> list[torch.nn.Module]:
    backbone = adapted.get_base_model().base_model
    return [
        module
        for module in backbone.modules()
        if type(module).__name__.lower().endswith(COMPILED_KINDS)
    ]
