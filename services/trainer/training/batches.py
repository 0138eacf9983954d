"""From encoded rows to micro-batches; what a step holds is a pure function of the seed.

Shapes: B rows (1 when packed), T tokens of a row, N label positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from corpus.packing import shuffle_order
from trainer.domain.plan import BatchPlan, steps_per_epoch

IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One encoded example: token ids, and labels with -100 where nothing is learned."""

    ids: np.ndarray
    labels: np.ndarray

    @property
    def trained_count(self) -> int:
        """Tokens that carry a label and have a token before them to predict them from."""
        return int((self.labels[1:] != IGNORED_LABEL).sum())

    @property
    def sequences(self) -> tuple["Row", ...]:
        """What the model reads of it."""
        return (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two continuations of one prompt, the first preferred."""

    chosen: Row
    rejected: Row

    @property
    def sequences(self) -> tuple[Row, ...]:
        """What the model reads of it."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True, kw_only=True)
class KtoExample:
    """A continuation that is desirable or not, and how much it weighs in the loss."""

    completion: Row
    desirable: bool
    weight: float

    @property
    def sequences(self) -> tuple[Row, ...]:
        """What the model reads of it."""
        return (self.completion,)


Example = Row | Pair | KtoExample


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Some examples in the layout of one forward pass.

    `ids_BT` and `positions_BT` are (1, T) when packed, (B, T) when padded. Positions begin at 0
    with each example; that is how the model knows where one ends, and examples do not see each
    other; `segment_lengths` says the same to attention that goes by segment, None when padded.
    `at_N` are flat places whose next token is trained on, `targets_N` those next tokens.
    """

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    at_N: torch.Tensor
    targets_N: torch.Tensor
    examples: tuple[Example, ...]
    token_count: int
    segment_lengths: tuple[int, ...] | None

    @property
    def computed_token_count(self) -> int:
        """Tokens that the forward pass computes, padding included."""
        return self.ids_BT.numel()


def step_indices(batches: BatchPlan, *, row_count: int, step: int) -> np.ndarray:
    """Examples of optimizer step `step` (0-based): a pass is one seeded permutation of all."""
    per_epoch = steps_per_epoch(batches, row_count=row_count)
    order = shuffle_order(row_count, seed=batches.seed, epoch=step // per_epoch)
    begin = step % per_epoch * batches.effective_batch_size
    return order[begin : begin + batches.effective_batch_size]


def longest_of(example: Example) -> int:
    """Tokens of the longest sequence that the model reads of the example."""
    return max(len(row.ids) for row in example.sequences)


def micro_batches(
    examples: Sequence[Example], *, micro_batch_size: int, packing: bool, device: torch.device
) -> Iterator[MicroBatch]:
    """The examples of one step in micro-batches of at most `micro_batch_size` examples.

    Rows that are filled up go with rows of like length, the longest first: that fills up least,
    and memory that does not suffice shows at once. Packed rows are not filled up and stay.
    """
    if not packing:
        examples = sorted(examples, key=longest_of, reverse=True)
    for begin in range(0, len(examples), micro_batch_size):
        chosen = examples[begin : begin + micro_batch_size]
        yield packed(chosen, device) if packing else padded(chosen, device)


def packed(examples: Sequence[Example], device: torch.device) -> MicroBatch:
    """All rows one after another: not a single token of padding."""
    rows = sequences_of(examples)
    ids = np.concatenate([row.ids for row in rows])
    positions = np.concatenate([np.arange(len(row.ids)) for row in rows])
    # The last token of an example has nothing to predict: the next one belongs to a stranger.
    labels = np.concatenate([np.append(row.labels[1:], IGNORED_LABEL) for row in rows])
    lengths = tuple(len(row.ids) for row in rows)
    return _micro_batch(ids[None], positions[None], labels, examples, device, lengths=lengths)


def padded(examples: Sequence[Example], device: torch.device) -> MicroBatch:
    """Each row for itself, filled up at the end, where causal attention never looks back."""
    rows = sequences_of(examples)
    longest = max(len(row.ids) for row in rows)
    ids = np.stack([np.pad(row.ids, (0, longest - len(row.ids))) for row in rows])
    positions = np.tile(np.arange(longest), (len(rows), 1))
    labels = np.stack(
        [
            np.pad(row.labels[1:], (0, longest - len(row.ids) + 1), constant_values=IGNORED_LABEL)
            for row in rows
        ]
    )
    return _micro_batch(ids, positions, labels.reshape(-1), examples, device, lengths=None)


def sequences_of(examples: Sequence[Example]) -> list[Row]:
    """What the model reads of the examples, in their order."""
    return [row for example in examples for row in example.sequences]


def _micro_batch(
    ids: np.ndarray,
    positions: np.ndarray,
    labels: np.ndarray,
    examples: Sequence[Example],
    device: torch.device,
    *,
    lengths: tuple[int, ...] | None,
) -> MicroBatch:
    at = np.flatnonzero(labels != IGNORED_LABEL)
    return MicroBatch(
        ids_BT=torch.from_numpy(ids.astype(np.int64)).to(device),
        positions_BT=torch.from_numpy(positions.astype(np.int64)).to(device),
        at_N=torch.from_numpy(at).to(device),
        targets_N=torch.from_numpy(labels[at].astype(np.int64)).to(device),
        examples=tuple(examples),
        token_count=sum(len(row.ids) for row in sequences_of(examples)),
        segment_lengths=lengths,
    )
