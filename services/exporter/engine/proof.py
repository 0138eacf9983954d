"""The proof: the finished file is read back and runs over the trainer's held-out conversations."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain import gates
from exporter.domain.gates import Behaviour, Closeness, Distributions, Figures, RowError
from exporter.domain.quantization import Quantization, TensorType
from exporter.engine import ggml
from exporter.engine.llama_model import LlamaModel
from exporter.engine.merge import MergedTensor
from exporter.engine.weight_swap import WeightSwap
from exporter.engine.weights import GgufFile, SafetensorsFile
from exporter.engine.writer import OnRows
from lexicon.faults import Fault, FaultCode

REFERENCE_NAME: Final = "proof_reference.safetensors"
REFERENCE_FORMAT: Final = "1"
# Rows of each tensor that are read back and encoded by the reference: a spot check of a large file.
ROWS_READ_BACK: Final = 8
# Memory for the keys and values of one conversation, whatever the model's size.
CACHE_BYTES: Final = 192 << 20
ELEMENTS_COMPARED: Final = 1 << 18
# Tokens that the finished file is measured over, prompts included: a bound for runs with many
# prompts, since a model of 7 B parameters takes some tenths of a second of a core for each.
FILE_TOKENS: Final = 96
# Tokens over which the base and the unquantised merge are measured, which read every weight
# unquantised: enough to recognise another base or a wrong merge by its divergence.
BRIEF_TOKENS: Final = 40
# Answer tokens that are measured however long the prompts are: a mean over fewer says little.
SCORED_LEAST: Final = 8
# Logits of one evaluation, whatever the vocabulary's size.
LOGIT_BYTES: Final = 64 << 20
MAX_REFERENCE_TOKENS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One held-out conversation; the token after a `scored` position is part of the answer."""

    tokens: list[int]
    scored: list[int]
    adapter: Distributions
    base: Distributions

    @property
    def targets(self) -> list[int]:
        """The answer's tokens, one for each scored position."""
        return [self.tokens[position + 1] for position in self.scored]

    @property
    def answer(self) -> list[int]:
        """Tokens that the adapter gave, to the end of the conversation."""
        return self.tokens[self.scored[0] + 1 :]

    @property
    def prompt(self) -> list[int]:
        """Tokens before the answer."""
        return self.tokens[: self.scored[0] + 1]

    def beginning(self, scored_count: int) -> "Segment":
        """The conversation up to the token after its first scored positions."""
        scored = self.scored[:scored_count]
        return Segment(
            tokens=self.tokens[: scored[-1] + 2],
            scored=scored,
            adapter=self.adapter.first(scored_count),
            base=self.base.first(scored_count),
        )


def read_reference(adapter_folder: Path) -> list[Segment] | None:
    """Returns the trainer's reference, or None when the adapter came without one.

    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    path = adapter_folder / REFERENCE_NAME
    if not path.is_file():
        return None
    with SafetensorsFile(path) as file:
        if file.metadata.get("format_version") != REFERENCE_FORMAT:
            return None
        try:
            arrays = {name: np.array(file.array(name)) for name in file.tensors}
            return list(_segments(arrays))
        except (KeyError, ValueError, IndexError) as error:
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID, f"{REFERENCE_NAME} does not fit itself: {error}."
            ) from error


def measure(model: LlamaModel, segments: Sequence[Segment], *, on_node: Any = None) -> Figures:
    """Runs a model over the reference.

    Args:
        on_node: see `LlamaModel.logits_together`.
    """
    for segment in segments:
        _require_known_tokens(model, segment)
    rows = model.logits_together(
        [(segment.tokens[:-1], segment.scored) for segment in segments], on_node=on_node
    )
    by_conversation = itertools.groupby(rows, key=lambda found: found[0])
    seen = [
        _look_up(segments[number], ((position, row) for _, position, row in found))
        for number, found in by_conversation
    ]
    return _figures(segments, seen)


def measure_base(base_path: Path, segments: Sequence[Segment], *, thread_count: int) -> Figures:
    """Runs the base over the beginnings of the reference."""
    segments = _fitting(segments, base_path)
    with LlamaModel(base_path, thread_count=thread_count) as model:
        return measure(model, _brief(model, segments))


def measure_base_and_merge(
    base_path: Path,
    tensors: Mapping[str, MergedTensor],
    segments: Sequence[Segment],
    *,
    thread_count: int,
    on_rows: OnRows,
) -> tuple[Figures, Figures]:
    """Runs the base, and the unquantised merge, whose weights are never all there.

    Args:
        on_rows: see `WeightSwap`.
    Raises:
        Fault: see `WeightSwap`.
    """
    segments = _fitting(segments, base_path)
    with LlamaModel(base_path, thread_count=thread_count) as model:
        brief = _brief(model, segments)
        base = measure(model, brief)
        token_ids = [token for segment in brief for token in segment.tokens[:-1]]
        with WeightSwap(tensors, token_ids, thread_count=thread_count, on_rows=on_rows) as swap:
            merge = measure(model, brief, on_node=swap.callback)
            swap.require_complete()
    return base, merge


def _brief(model: LlamaModel, segments: Sequence[Segment]) -> list[Segment]:
    rows = max(1, LOGIT_BYTES // (model.token_count * np.dtype(np.float32).itemsize))
    return shortest_prompts(segments, tokens=BRIEF_TOKENS, rows=rows)


def _figures(segments: Sequence[Segment], seen: Sequence["_Seen"]) -> Figures:
    """How what was seen compares with the references."""
    adapter_kl: list[float] = []
    base_kl: list[float] = []
    adapter_hits = base_hits = 0
    losses: list[float] = []
    adapter_losses: list[float] = []
    for segment, one in zip(segments, seen, strict=True):
        adapter_kl += gates.row_divergences(segment.adapter, one.at_adapter).tolist()
        base_kl += gates.row_divergences(segment.base, one.at_base).tolist()
        adapter_hits += int((one.best == segment.adapter.ids[:, 0]).sum())
        base_hits += int((one.best == segment.base.ids[:, 0]).sum())
        losses += one.losses.tolist()
        adapter_losses += _reference_losses(segment.adapter, segment.targets)
    count = len(losses)
    return Figures(
        adapter=Closeness(mean_kl=float(np.mean(adapter_kl)), top1_agreement=adapter_hits / count),
        base=Closeness(mean_kl=float(np.mean(base_kl)), top1_agreement=base_hits / count),
        separation_kl=gates.separation(
            _joined(s.adapter for s in segments), _joined(s.base for s in segments)
        ),
        loss=float(np.mean(losses)),
        adapter_loss=float(np.mean(adapter_losses)),
        token_count=count,
    )


def read_back(path: Path, tensors: Mapping[str, MergedTensor]) -> dict[TensorType, float]:
    """Compares rows of every tensor of the finished file with what they must be.

    Returns the relative error by type, over the rows that were read.

    Raises:
        Fault: EXPORT_QUANTIZATION_BROKEN, EXPORT_VERIFY_MISMATCH.
    """
    errors: dict[TensorType, RowError] = {}
    with GgufFile(path) as file:
        if file.by_name.keys() != tensors.keys():
            raise Fault(
                FaultCode.EXPORT_VERIFY_MISMATCH, "The file's tensors are not those of the base."
            )
        for info in file.header.tensors:
            merged = tensors[info.name]
            rows = gates.sampled_rows(info.row_count, sample_count=ROWS_READ_BACK)
            stored = np.concatenate([file.raw(info, first_row=at, row_count=1) for at in rows])
            wanted = np.concatenate([merged.rows(first=at, count=1) for at in rows])
            gates.require_equal_rows(
                info.name, info.type, wanted=ggml.encode(wanted, info.type), stored=stored
            )
            decoded = ggml.decode(stored, info.type, column_count=info.column_count)
            errors.setdefault(info.type, RowError()).add(wanted=wanted, stored=decoded)
    return {kind: error.relative for kind, error in errors.items()}


def require_change(tensors: Mapping[str, MergedTensor]) -> None:
    """Looks for one number that the adapter moves; the first rows looked at have it as a rule.

    Raises:
        Fault: EXPORT_NOOP_MERGE when the merge is the base itself, number for number.
    """
    for tensor in tensors.values():
        info = tensor.info
        rows = max(1, ELEMENTS_COMPARED // info.column_count)
        for first in range(0, info.row_count if tensor.is_touched else 0, rows):
            if tensor.differs(first=first, count=min(rows, info.row_count - first)):
                return
    raise Fault(
        FaultCode.EXPORT_NOOP_MERGE, "The adapter moves no number of its base by the smallest step."
    )


def prove(
    model: LlamaModel,
    path: Path,
    segments: Sequence[Segment],
    mix: Quantization,
    *,
    base: Figures,
    merge: Figures | None,
) -> Behaviour:
    """Measures the finished file, and judges it with the base and the unquantised merge.

    Args:
        model: the file at `path`, open in llama.cpp.
        merge: None when the merge is the file itself.
    Raises:
        Fault: EXPORT_WRONG_BASE, EXPORT_NOOP_MERGE, EXPORT_MERGE_MISMATCH,
            EXPORT_QUANTIZATION_BROKEN, EXPORT_VERIFY_MISMATCH.
    """
    file = measure(model, portion(_fitting(segments, path), tokens=FILE_TOKENS))
    behaviour = Behaviour(file=file, merge=merge or file, base_kl_of_base=base.base.mean_kl)
    gates.judge(behaviour, mix)
    return behaviour


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a model expects at each scored position: of either reference's tokens, and at all."""

    at_adapter: NDArray[np.float32]
    at_base: NDArray[np.float32]
    best: NDArray[np.int64]
    losses: NDArray[np.float64]


def _require_known_tokens(model: LlamaModel, segment: Segment) -> None:
    highest = max(*segment.tokens, segment.adapter.ids.max(), segment.base.ids.max())
    if highest >= model.token_count:
        raise Fault(
            FaultCode.EXPORT_WRONG_BASE, "The reference holds tokens that the base does not have."
        )


def _look_up(segment: Segment, rows: Iterable[tuple[int, NDArray[np.float32]]]) -> _Seen:
    """Keeps of each distribution only what is asked, since a vocabulary may have 262,144 tokens.

    Args:
        rows: the scored positions in order, each with the logits behind it.
    """
    seen = _Seen(
        at_adapter=np.empty_like(segment.adapter.logprobs),
        at_base=np.empty_like(segment.base.logprobs),
        best=np.empty(len(segment.scored), np.int64),
        losses=np.empty(len(segment.scored), np.float64),
    )
    for index, (position, row) in enumerate(rows):
        # What is not finite stays so, and the gates refuse it.
        with np.errstate(invalid="ignore"):
            shifted = row - row.max()
            logprobs = shifted - np.log(np.exp(shifted).sum())
        seen.at_adapter[index] = logprobs[segment.adapter.ids[index]]
        seen.at_base[index] = logprobs[segment.base.ids[index]]
        seen.best[index] = row.argmax()
        seen.losses[index] = -logprobs[segment.tokens[position + 1]]
    return seen


def portion(segments: Sequence[Segment], *, tokens: int) -> list[Segment]:
    """Beginnings of as many conversations as possible, so many tokens together.

    Each gets an equal share of what is left, the shortest first, so that what one does not need
    goes to the longer ones. Where the prompts leave less than `SCORED_LEAST` answer tokens, see
    `shortest_prompts`.
    """
    chosen: list[Segment] = []
    left = tokens
    waiting = sorted(segments, key=lambda segment: len(segment.tokens))
    for index, segment in enumerate(waiting):
        share = left // (len(waiting) - index)
        count = sum(place < share - 1 for place in segment.scored)
        if count > 0:
            chosen.append(segment.beginning(count))
            left -= len(chosen[-1].tokens)
    if sum(len(segment.scored) for segment in chosen) < SCORED_LEAST:
        return shortest_prompts(segments, tokens=tokens, rows=tokens)
    return chosen


def shortest_prompts(segments: Sequence[Segment], *, tokens: int, rows: int) -> list[Segment]:
    """Beginnings of the conversations with the shortest prompts: most answer for so many tokens.

    The first one brings up to `SCORED_LEAST` answer tokens even where its prompt is too long.

    Args:
        rows: answer tokens at the most.
    """
    chosen: list[Segment] = []
    for segment in sorted(segments, key=lambda one: (len(one.prompt), -len(one.scored))):
        count = sum(place < tokens - 1 for place in segment.scored)
        if not chosen:
            count = max(count, min(SCORED_LEAST, len(segment.scored)))
        count = min(count, rows)
        if count <= 0:
            break
        chosen.append(segment.beginning(count))
        tokens -= len(chosen[-1].tokens)
        rows -= count
    return chosen


def _fitting(segments: Sequence[Segment], path: Path) -> list[Segment]:
    """Conversations whose keys and values fit into the memory for them; the shortest at least.

    Args:
        path: the GGUF that runs over them.
    """
    with GgufFile(path) as file:
        header = file.header
    name = header.text("general.architecture")
    heads = header.number(f"{name}.attention.head_count", 1)
    width = header.number(f"{name}.embedding_length") // max(1, heads)
    numbers_per_token = (
        header.number(f"{name}.block_count")
        * header.number(f"{name}.attention.head_count_kv", heads)
        * (
            header.number(f"{name}.attention.key_length", width)
            + header.number(f"{name}.attention.value_length", width)
        )
    )
    limit = CACHE_BYTES // max(1, numbers_per_token * np.dtype(np.float32).itemsize)
    found = [segment for segment in segments if len(segment.tokens) <= limit]
    return found or [min(segments, key=lambda segment: len(segment.tokens))]


def _reference_losses(reference: Distributions, targets: list[int]) -> list[float]:
    """-log p of the targets; one outside the list is taken to be as likely as its last."""
    hit = reference.ids == np.asarray(targets)[:, None]
    found = np.where(hit, reference.logprobs, -np.inf).max(axis=1)
    losses = -np.where(np.isfinite(found), found, reference.logprobs.min(axis=1))
    return [float(loss) for loss in losses]


def _joined(parts: Iterator[Distributions]) -> Distributions:
    everything = list(parts)
    return Distributions(
        ids=np.concatenate([part.ids for part in everything]),
        logprobs=np.concatenate([part.logprobs for part in everything]),
    )


def _segments(arrays: Mapping[str, NDArray[np.generic]]) -> Iterator[Segment]:
    tokens = arrays["token_ids"].astype(np.int64)
    offsets = arrays["segment_offsets"].astype(np.int64)
    scored = arrays["scored"].astype(bool)
    if len(tokens) > MAX_REFERENCE_TOKENS or len(tokens) != len(scored) or np.any(tokens < 0):
        raise ValueError("token_ids and scored differ")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or np.any(np.diff(offsets) < 0):
        raise ValueError("segment_offsets do not cover token_ids")
    for start, end in itertools.pairwise(offsets):
        # The last token of a conversation has no next one to compare with.
        positions = np.flatnonzero(scored[start : end - 1])
        if len(positions):
            rows = start + positions
            yield Segment(
                tokens=tokens[start:end].tolist(),
                scored=positions.tolist(),
                adapter=_distributions(arrays, "adapter", rows),
                base=_distributions(arrays, "base", rows),
            )


def _distributions(
    arrays: Mapping[str, NDArray[np.generic]], model: str, rows: NDArray[np.int64]
) -> Distributions:
    ids = arrays[f"{model}_topk_ids"][rows].astype(np.int32)
    logprobs = arrays[f"{model}_topk_logprobs"][rows].astype(np.float32)
    if (
        ids.shape != logprobs.shape
        or ids.ndim != 2
        or np.any(ids < 0)
        or not np.isfinite(logprobs).all()
    ):
        raise ValueError(f"the distributions of the {model} are impossible")
    return Distributions(ids=ids, logprobs=logprobs)
