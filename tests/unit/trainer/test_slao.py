"""The arithmetic of SLAO against its formulas.

Source: Qiao and Mahdavi 2025, arXiv:2512.23017.
"""

import math

import pytest
import torch

from trainer.training import slao

A, B, SIZE = "m.lora_A.default.weight", "m.lora_B.default.weight", "m.lora_magnitude_vector.weight"


def an_adapter(
    seed: int, *, rank: int = 4, inside: int = 9, outside: int = 7
) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        A: torch.randn(rank, inside, generator=rng),
        B: torch.randn(outside, rank, generator=rng),
        SIZE: torch.randn(outside, generator=rng),
    }


def test_a_run_opens_with_orthonormal_rows_that_span_the_old_ones() -> None:
    before = an_adapter(1)
    after = slao.opening(before)
    assert torch.allclose(after[A] @ after[A].T, torch.eye(4), atol=1e-6)
    # Every old row is its own projection onto the new ones.
    assert torch.allclose(before[A] @ after[A].T @ after[A], before[A], atol=1e-5)
    assert torch.equal(after[B], before[B])
    assert torch.equal(after[SIZE], before[SIZE])


def test_orthonormal_rows_stay_as_they_are() -> None:
    """The signs of QR are fixed: B's columns go on belonging to the rows that they learnt with."""
    once = slao.orthonormal(an_adapter(2)[A])
    assert torch.allclose(slao.orthonormal(once), once, atol=1e-6)


def test_signs_follow_the_old_rows() -> None:
    row = torch.tensor([[3.0, 4.0]])
    assert torch.allclose(slao.orthonormal(-row), torch.tensor([[-0.6, -0.8]]))


def test_rows_that_depend_on_each_other_still_give_a_basis() -> None:
    row = torch.randn(1, 8, generator=torch.Generator().manual_seed(3))
    for matrix in (torch.cat([row, 2 * row, row]), torch.zeros(3, 8)):
        basis = slao.orthonormal(matrix)
        assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-6)


def test_more_rows_than_features_give_orthonormal_columns() -> None:
    basis = slao.orthonormal(an_adapter(4, rank=8, inside=3)[A])
    assert basis.shape == (8, 3)
    assert torch.allclose(basis.T @ basis, torch.eye(3), atol=1e-6)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_b_moves_by_lambda_and_the_rest_is_replaced(number: int) -> None:
    before, tuned = an_adapter(5), an_adapter(6)
    weight = 1 / math.sqrt(number)
    merged = slao.merged(before, tuned, weight=weight)
    assert torch.equal(merged[A], tuned[A])
    assert torch.equal(merged[SIZE], tuned[SIZE])
    assert torch.allclose(merged[B], (1 - weight) * before[B] + weight * tuned[B], atol=1e-6)


def test_the_first_merge_is_the_run_itself() -> None:
    tuned = an_adapter(7)
    merged = slao.merged(None, tuned, weight=1.0)
    assert all(torch.equal(merged[name], tuned[name]) for name in tuned)
    assert all(merged[name] is not tuned[name] for name in tuned)


def test_drift_is_the_cosine_over_all_b() -> None:
    first, second = an_adapter(8), an_adapter(9)
    second[B] = -3 * first[B]
    assert slao.drift_cosine(first, second) == pytest.approx(-1.0)
    assert slao.drift_cosine(first, {**second, B: torch.zeros(7, 4)}) is None
    assert slao.drift_cosine(first, {**second, B: torch.full((7, 4), torch.nan)}) is None


def test_distance_and_finiteness_see_every_weight() -> None:
    first = an_adapter(10)
    second = {name: tensor.clone() for name, tensor in first.items()}
    assert slao.distance(first, second) == 0.0
    second[SIZE][0] += 3.0
    second[A][0, 0] += 4.0
    assert slao.distance(first, second) == pytest.approx(5.0, rel=1e-5)
    assert slao.is_finite(second)
    second[B][1, 1] = math.inf
    assert not slao.is_finite(second)
