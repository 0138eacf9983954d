"""SLAO: how the weights of one run are folded into the adapter that all runs share.

The adapter's delta is B·A. A run begins with rows of A that are orthonormal and span what the
run before had learnt to look at, and with that run's B. Afterwards A is replaced by the run's own
(so is whatever else an adapter has, DoRA's magnitudes for one), and B moves a part of the way.

Shapes: R rank, I input features, O output features; A is (R, I), B is (O, R).
Source: Qiao and Mahdavi 2025, "Merge before Forget", arXiv:2512.23017, algorithm 1.
"""

import math
from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def opening(before: Weights) -> dict[str, torch.Tensor]:
    """Weights that a run begins with, after a run that ended with `before`."""
    return {
        name: orthonormal(tensor) if _is_a(name) else tensor.clone()
        for name, tensor in before.items()
    }


def orthonormal(a_RI: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the rows of A: Qᵀ of QR(Aᵀ), with the signs that keep R positive.

    With more rows than features there is none; then the columns are orthonormal. Computed in
    float64 on the CPU: every backend gives the same bits.
    """
    matrix = a_RI.detach().to("cpu", torch.float64).flatten(1)
    is_wide = matrix.shape[0] <= matrix.shape[1]
    basis, triangle = torch.linalg.qr(matrix.T if is_wide else matrix)
    # QR is unique up to the signs of its columns: without this, rows of A would flip at random
    # against the columns of B that belong to them.
    basis = basis * torch.where(torch.diagonal(triangle) < 0, -1.0, 1.0)
    found: torch.Tensor = basis.T if is_wide else basis
    return found.reshape(a_RI.shape).to(a_RI.device, a_RI.dtype).contiguous()


def merged(before: Weights | None, tuned: Weights, *, weight: float) -> dict[str, torch.Tensor]:
    """The adapter with a run folded in: A replaced, B moved by `weight` of the way.

    Args:
        before: the adapter as merged so far; None when the run is the first in it.
    """
    return {
        name: before[name] + weight * (tensor - before[name])
        if before is not None and _is_b(name)
        else tensor.clone()
        for name, tensor in tuned.items()
    }


def drift_cosine(before: Weights, tuned: Weights) -> float | None:
    """Cosine between all B of the two adapters; None when one of them is zero or not finite."""
    product = before_square = tuned_square = 0.0
    for name in filter(_is_b, tuned):
        old, new = before[name].double(), tuned[name].double()
        product += float((old * new).sum())
        before_square += float(old.square().sum())
        tuned_square += float(new.square().sum())
    length = math.sqrt(before_square * tuned_square)
    if not 0.0 < length < float("inf"):
        return None
    return product / length


def distance(first: Weights, second: Weights) -> float:
    """Euclidean distance between two adapters over all their weights."""
    square = sum(
        float((first[name].double() - tensor.double()).square().sum())
        for name, tensor in second.items()
    )
    return math.sqrt(square)


def is_finite(weights: Weights) -> bool:
    """Whether no weight is infinite or not a number."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())


def _is_a(name: str) -> bool:
    return "lora_A." in name or "lora_embedding_A." in name


def _is_b(name: str) -> bool:
    return "lora_B." in name or "lora_embedding_B." in name
