"""A GGUF loaded into llama.cpp: token ids, logits and greedy answers, on the CPU."""

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from lexicon.faults import Fault, FaultCode

# Lines of llama.cpp's log that go into an error.
LOG_LINES: Final = 40
# Tokens that are evaluated at once, fewer where a large vocabulary would make their logits exceed
# the bytes.
BATCH_TOKENS: Final = 512
BATCH_LOGIT_BYTES: Final = 64 << 20
# llama.cpp's threads wait for each other by spinning; a model below this size a thread is faster
# alone.
BYTES_PER_THREAD: Final = 32 << 20

_log: deque[str] = deque(maxlen=LOG_LINES)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes' own
def keep_log(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    """Keep the last lines that llama.cpp logs; lives as long as the process, as llama.cpp wants."""
    _log.append(text.decode("utf-8", "replace"))


class LlamaModel:
    """An open model; closes with its context."""

    def __init__(
        self,
        path: Path,
        *,
        thread_count: int,
        vocabulary_only: bool = False,
    ) -> None:
        """Load a GGUF.

        Raises:
            Fault: EXPORT_VERIFY_MISMATCH when llama.cpp does not load it, with the end of its log.
        """
        llama_cpp.llama_log_set(keep_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = vocabulary_only
        parameters.n_gpu_layers = 0
        # Weights stay where the file is mapped; rearranged copies are as large as the model.
        parameters.use_extra_bufts = False
        self._threads = max(1, min(thread_count, path.stat().st_size // BYTES_PER_THREAD))
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise Fault(
                FaultCode.EXPORT_VERIFY_MISMATCH,
                f"llama.cpp does not load {path.name}.",
                llama_log="".join(_log)[-2000:],
            )
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.token_count: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        logit_bytes = np.dtype(np.float32).itemsize * max(1, self.token_count)
        self._batch_tokens = max(1, min(BATCH_TOKENS, BATCH_LOGIT_BYTES // logit_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids with special tokens recognised in the text.

        Args:
            add_special: let the vocabulary add its begin or end tokens, as runtimes do.
        """
        encoded = text.encode("utf-8")
        # Every token covers at least one byte, beside a space that may come before each fragment.
        room = 2 * len(encoded) + 8
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self._vocabulary, encoded, len(encoded), tokens, room, add_special, True
        )
        assert count >= 0
        return list(tokens[:count])

    def ends_generation(self, token: int) -> bool:
        """Whether runtimes stop at this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    def logits(
        self, tokens: Sequence[int], wanted: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yields (position, logits of the next token) for the wanted positions, ascending.

        Args:
            tokens: one conversation from position 0.
        Raises:
            Fault: EXPORT_VERIFY_MISMATCH when llama.cpp cannot evaluate it.
        """
        with self._context(len(tokens)) as context:
            for (_, position), row in self._evaluate(context, _places(tokens, wanted)):
                yield position, row

    def logits_together(
        self, conversations: Sequence[tuple[Sequence[int], Sequence[int]]], *, on_node: Any = None
    ) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Yields (conversation, position, logits) of conversations that are evaluated together.

        Conversations and positions ascend; one batch reads the weights once for many tokens.

        Args:
            conversations: tokens and wanted positions of each.
            on_node: a `ggml_backend_sched_eval_callback`; everything is then one batch, so that it
                sees every operation once.
        Raises:
            Fault: EXPORT_VERIFY_MISMATCH when llama.cpp cannot evaluate them.
        """
        places = [
            place
            for number, (tokens, wanted) in enumerate(conversations)
            for place in _places(tokens, wanted, conversation=number)
        ]
        with self._context(
            len(places), conversation_count=len(conversations), on_node=on_node
        ) as context:
            at_once = None if on_node is None else len(places)
            for (conversation, position), row in self._evaluate(context, places, at_once=at_once):
                yield conversation, position, row

    def answer(self, tokens: Sequence[int], *, max_tokens: int) -> list[int]:
        """Returns the most likely continuation, with the token that ends it if it came."""
        made: list[int] = []
        with self._context(len(tokens) + max_tokens) as context:
            fresh, first = list(tokens), 0
            while len(made) < max_tokens:
                places = _places(fresh, [len(fresh) - 1], first=first)
                rows = [row for _, row in self._evaluate(context, places)]
                made.append(int(rows[0].argmax()))
                if self.ends_generation(made[-1]):
                    break
                first += len(fresh)
                fresh = made[-1:]
        return made

    @contextmanager
    def _context(
        self, token_count: int, *, conversation_count: int = 1, on_node: Any = None
    ) -> Iterator[Any]:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = token_count
        parameters.n_batch = parameters.n_ubatch = min(token_count, self._batch_tokens)
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.no_perf = True
        parameters.n_seq_max = conversation_count
        parameters.kv_unified = True
        if on_node is not None:
            parameters.n_batch = parameters.n_ubatch = token_count
            parameters.cb_eval = on_node
        # Exact numbers matter more than speed here: no lossy attention or cache.
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise Fault(
                FaultCode.EXPORT_VERIFY_MISMATCH,
                "llama.cpp does not open the model.",
                llama_log="".join(_log)[-2000:],
            )
        try:
            yield context
        finally:
            llama_cpp.llama_free(context)

    def _evaluate(
        self, context: Any, places: Sequence["_Place"], *, at_once: int | None = None
    ) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
        """Yields ((conversation, position), logits) of the wanted places."""
        step = at_once or self._batch_tokens
        for start in range(0, len(places), step):
            part = places[start : start + step]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            try:
                batch.n_tokens = len(part)
                for index, place in enumerate(part):
                    batch.token[index] = place.token
                    batch.pos[index] = place.position
                    batch.n_seq_id[index] = 1
                    batch.seq_id[index][0] = place.conversation
                    batch.logits[index] = place.is_wanted
                if llama_cpp.llama_decode(context, batch) != 0:
                    raise Fault(
                        FaultCode.EXPORT_VERIFY_MISMATCH,
                        "llama.cpp does not evaluate the model.",
                        llama_log="".join(_log)[-2000:],
                    )
                for index, place in enumerate(part):
                    if place.is_wanted:
                        row = llama_cpp.llama_get_logits_ith(context, index)
                        logits = np.ctypeslib.as_array(row, shape=(self.token_count,)).copy()
                        yield (place.conversation, place.position), logits
            finally:
                llama_cpp.llama_batch_free(batch)


@dataclass(frozen=True, slots=True)
class _Place:
    """A token of a conversation, and whether the logits behind it are asked for."""

    token: int
    conversation: int
    position: int
    is_wanted: bool


def _places(
    tokens: Sequence[int], wanted: Sequence[int], *, conversation: int = 0, first: int = 0
) -> list[_Place]:
    """Places of tokens.

    Args:
        wanted: indices into `tokens`.
        first: position of the first token.
    """
    asked = set(wanted)
    return [
        _Place(token, conversation, first + index, index in asked)
        for index, token in enumerate(tokens)
    ]
