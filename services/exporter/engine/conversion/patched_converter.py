"""llama.cpp's own converter with our parts in it: how one checkpoint becomes a GGUF.

Tensors whose rows only move are copied in slabs, tokenizers are read ahead, and it is noted which
tensors of the checkpoint became which of the file. With `whole_tensors` the converter does all of
its work itself, which takes its memory and gives the same file. Nothing here reaches the network,
and no code of the model is ever executed.
"""

import ctypes
import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from exporter.domain.pretokenizer import match_pretokenizer
from exporter.engine.conversion.row_streams import Shadow
from exporter.engine.conversion.tokenizer_json import TokenizerReader
from exporter.engine.conversion.tokenizer_reader import rules_of
from exporter.engine.conversion.transformers_stand_in import read_ahead


def convert(
    folder: Path, target: Path, *, vendor: Path, outtype: str, whole_tensors: bool
) -> Sequence[Mapping[str, Sequence[str]]]:
    """Writes a GGUF; returns which tensors of the checkpoint became which of the file.

    Args:
        vendor: folder with llama.cpp's `conversion` package and `gguf-py`.
        outtype: bf16, f16 or f32.
        whole_tensors: nothing is streamed.
    Raises:
        Exception: whatever the converter raises.
    """
    if not whole_tensors:
        with read_ahead(folder, vendor):
            return _convert(folder, target, vendor=vendor, outtype=outtype, whole_tensors=False)
    return _convert(folder, target, vendor=vendor, outtype=outtype, whole_tensors=True)


def _convert(
    folder: Path, target: Path, *, vendor: Path, outtype: str, whole_tensors: bool
) -> Sequence[Mapping[str, Sequence[str]]]:
    # First, before any published `gguf`.
    sys.path[:0] = [str(vendor), str(vendor / "gguf-py")]
    # Both are llama.cpp's own, found on the path set above.
    conversion, gguf = (importlib.import_module(name) for name in ("conversion", "gguf"))
    if not whole_tensors:
        gguf.vocab.json = TokenizerReader()
    hparams = conversion.ModelBase.load_hparams(folder, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    if not whole_tensors:
        _require_known_rotation(hparams, architecture)
    kinds = {
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "f32": gguf.LlamaFileType.ALL_F32,
    }
    model_class = conversion.get_model_class(architecture)
    model, shadow = model_class(folder, kinds[outtype], target), None
    # Weights that are stored quantised come from several tensors each, by arithmetic.
    if not whole_tensors and "quantization_config" not in hparams:
        as_tensor = importlib.import_module("torch").from_numpy
        shadow = Shadow(model_class(folder, kinds[outtype], target), as_tensor=as_tensor)
        model.prepare_tensors = _streaming(model, shadow)
    record = _Recorder(model.modify_tensors, shadow)
    model.modify_tensors = record
    model.get_vocab_base_pre = _name_pretokenizer(model.get_vocab_base_pre)
    model.get_vocab_base = _giving_back(model.get_vocab_base)
    model.set_vocab = _giving_back(model.set_vocab)
    model.gguf_writer.open_output_file = _allocating(model.gguf_writer)
    with exact_powers():
        model.write()
    return record.groups


# Scalings of rotary embeddings that the converter writes. It only logs that it knows no other, and
# the model would then answer long texts otherwise than trained.
ROTATIONS: Final = frozenset(
    {"default", "linear", "yarn", "su", "longrope", "llama3", "proportional", "mrope"}
)
# Their converter writes another scaling by itself.
_WITH_DYNAMIC_ROTATION: Final = "HunYuan"


def _require_known_rotation(hparams: Mapping[str, Any], architecture: str) -> None:
    """Refuses a model whose rotary scaling has no place in a GGUF.

    Raises:
        ValueError: it has one.
    """
    given = hparams.get("rope_parameters") or hparams.get("rope_scaling") or {}
    for parameters in (given, *(part for part in given.values() if isinstance(part, Mapping))):
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind not in ROTATIONS and not architecture.startswith(_WITH_DYNAMIC_ROTATION):
            raise ValueError(f"a GGUF has no place for the rotary scaling {kind!r}")


@contextmanager
def exact_powers() -> Iterator[None]:
    """While it lasts, `number ** tensor` of float32 is rounded correctly.

    Converters take the factors of rotary embeddings from such powers, and torch's own are off by
    one in the last place here and there, depending on the processor's instruction set.
    """
    torch = importlib.import_module("torch")
    kept = torch.Tensor.__rpow__

    def power(exponents: Any, base: Any) -> Any:
        if exponents.dtype != torch.float32 or not isinstance(base, int | float):
            return kept(exponents, base)
        values = [math.pow(base, exponent) for exponent in exponents.flatten().tolist()]
        return torch.tensor(values, dtype=torch.float64).float().reshape(exponents.shape)

    torch.Tensor.__rpow__ = power
    try:
        yield
    finally:
        torch.Tensor.__rpow__ = kept


class _Recorder:
    """Replaces `modify_tensors` and notes names: sources wait until a call yields targets."""

    def __init__(
        self, modify: Callable[..., Iterable[tuple[str, Any]]], shadow: Shadow | None
    ) -> None:
        self._modify, self._shadow = modify, shadow
        self._waiting: dict[int | None, list[str]] = {}
        self.groups: list[dict[str, list[str]]] = []

    def __call__(self, data: Any, name: str, bid: int | None) -> Iterator[tuple[str, Any]]:
        waiting = self._waiting.setdefault(bid, [])
        waiting.append(name)
        if self._shadow:
            self._shadow.follow(name, tuple(data.shape), bid)
        targets: list[str] = []
        for target, tensor in self._modify(data, name, bid):
            targets.append(target)
            yield target, tensor
        if targets:
            # A dense tensor answers at once and alone; experts of a layer answer together at the
            # end.
            sources = [name] if ".experts." not in name else list(waiting)
            self._waiting[bid] = [source for source in waiting if source not in sources]
            self.groups.append({"sources": sources, "targets": targets})


def _streaming(model: Any, shadow: Shadow) -> Callable[[], None]:
    """The preparation of a model's tensors, after which they are streams where they can be."""
    prepare = model.prepare_tensors

    def prepare_streams() -> None:
        prepare()
        tensors = model.gguf_writer.tensors[0]
        count = shadow.replace(tensors)
        logging.getLogger("exporter").info("%d of %d tensors are streamed", count, len(tensors))

    return prepare_streams


def _allocating(writer: Any) -> Callable[..., None]:
    """Opens the writer's files with room for their tensors.

    A file system that finds room for each page as it is written may take ten times as long, and a
    full disk shows before the first tensor.
    """
    open_files = writer.open_output_file

    def open_and_allocate(*arguments: Any, **options: Any) -> None:
        open_files(*arguments, **options)
        for file, tensors in zip(writer.fout, writer.tensors, strict=True):
            size_bytes = sum(tensor.nbytes for tensor in tensors.values())
            if size_bytes and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size_bytes)

    return open_and_allocate


def _giving_back(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same, after which the system has back what the work freed: tokenizers are large."""

    def work_and_trim() -> Any:
        result = work()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        return result

    return work_and_trim


def _name_pretokenizer(known: Callable[[Any], str]) -> Callable[[Any], str]:
    def name(tokenizer: Any) -> str:
        try:
            return known(tokenizer)
        except NotImplementedError:
            rules = getattr(tokenizer, "rules", None) or rules_of(tokenizer.backend_tokenizer)
            found = match_pretokenizer(rules)
            if found is None:
                raise
            logging.getLogger("exporter").info("pre-tokenizer equals %s by structure", found)
            return found

    return name
