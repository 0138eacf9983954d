"""One export from end to end: base, merge, quantise, prove, bundle. Runs in the working child."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from exporter.domain import bundle
from exporter.domain.adapter import Adapter, read_adapter
from exporter.domain.gates import Figures
from exporter.domain.gguf_format import string_value
from exporter.domain.quantization import Quantization, parse_quantization
from exporter.engine import proof, templates, vocabulary, writer
from exporter.engine.archive import Checksums, checksums
from exporter.engine.base import BaseModel, cache_key, cached_base, prepare_base
from exporter.engine.bundling import Evidence, facts_of, proof_report, write_bundle
from exporter.engine.disk import conversion_bytes, disk_errors, sync_file
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.llama_model import LlamaModel
from exporter.engine.merge import MergedTensor
from exporter.engine.merge_plan import merge_plan
from exporter.engine.proof import Segment
from exporter.engine.reuse import EncodedStore
from exporter.engine.weights import GgufFile, SafetensorsFile, read_json
from exporter.engine.writer import FilePlan, OnRows
from exporter.pipe import BaseNeededError, Export, Exported, ProofFigures
from lexicon.faults import Fault, FaultCode
from objects.cache import Evicted, FolderCache

WEIGHTS_NAME: Final = "adapter_model.safetensors"
CONFIG_NAME: Final = "adapter_config.json"

OnProgress = Callable[[str, float], None]
OnEvicted = Callable[[Evicted], None]
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What does not change between exports.

    Attributes:
        cache: converted bases, a folder of the cache of models.
        cache_bytes: bound of the cache of models, 0 for half of its volume.
    """

    cache: Path
    vendor: Path
    thread_count: int
    kernel: Kernel
    llama_version: str
    cache_bytes: int = 0

    @property
    def models(self) -> FolderCache:
        """The cache of models that the converted bases are a part of."""
        return FolderCache(self.cache.parent, bound_bytes=self.cache_bytes)


@dataclass(slots=True, kw_only=True)
class _Clock:
    """Seconds by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - begin, 3)


def export(
    engine: Engine,
    job: Export,
    on_progress: OnProgress,
    on_evicted: OnEvicted = lambda _evicted: None,
) -> Exported:
    """Makes a bundle at `job.target`.

    Raises:
        BaseNeededError: the job names no files of its base, and there is no conversion of it.
        Fault: EXPORT_ADAPTER_MISSING, EXPORT_ADAPTER_UNSUPPORTED, EXPORT_ADAPTER_UNTRAINED,
            EXPORT_DISK_FULL, EXPORT_NOOP_MERGE, EXPORT_WRONG_BASE, EXPORT_MERGE_MISMATCH,
            EXPORT_QUANTIZATION_BROKEN, EXPORT_TEMPLATE_MISMATCH, EXPORT_TENSOR_UNMAPPED,
            EXPORT_VERIFY_MISMATCH, EXPORT_VOCABULARY_MISMATCH, CONFIG_QUANTIZATION_UNKNOWN,
            MODEL_NOT_CONVERTIBLE, MODEL_WEIGHTS_INVALID.
    """
    parse_quantization(job.quantization)
    require_adapter(Path(job.adapter))
    # A base is gigabytes to fetch and to convert; settings are refused before anyone asks for it.
    adapter = _read_adapter(Path(job.adapter))
    key = cache_key(job.base_key, llama_version=engine.llama_version)
    if job.is_converted_anew:
        engine.models.forget(engine.cache / key, in_use_too=True)
    work = _Work(engine=engine, job=job, on_progress=on_progress, on_evicted=on_evicted)
    with engine.models.using(engine.cache / key):
        with work.clock.step("base"):
            on_progress("base", 0.0)
            if cached_base(engine.cache, key) is None:
                if not job.checkpoint:
                    raise BaseNeededError
                work.make_room(conversion_bytes(Path(job.checkpoint)))
            base = prepare_base(Path(job.checkpoint), engine.cache, key, vendor=engine.vendor)
        return _export(work, base, adapter)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One export under way."""

    engine: Engine
    job: Export
    on_progress: OnProgress
    on_evicted: OnEvicted
    clock: _Clock = field(default_factory=_Clock)

    def make_room(self, needed_bytes: int, *, at: Path | None = None) -> None:
        """Evicts from the cache what was not used for longest; a later check reports a shortage.

        Args:
            at: folder to write into when it is not the cache.
        """
        for evicted in self.engine.models.make_room(needed_bytes, at=at):
            self.on_evicted(evicted)


def _export(work: _Work, base: BaseModel, adapter: Adapter) -> Exported:
    engine, job, clock = work.engine, work.job, work.clock
    mix = parse_quantization(job.quantization)
    adapter_folder, target = Path(job.adapter), Path(job.target)
    with (
        GgufFile(base.gguf) as gguf,
        SafetensorsFile(adapter_folder / WEIGHTS_NAME) as weights,
        disk_errors(),
    ):
        words = vocabulary.read_vocabulary(
            adapter_folder, base, gguf, adapter=adapter, weights=weights, scratch=target.parent
        )
        tensors = merge_plan(gguf, base.placements(), adapter, weights, merge=engine.kernel.merge)
        trained = templates.read_template(adapter_folder, words.header, words.tokenizer)
        metadata = [
            *trained.metadata(),
            *templates.fitting_space_prefix(words.header, trained, target.parent),
            string_value("general.name", _title(job)),
        ]
        vocabulary.require_readable(words, metadata, target.parent)
        proof.require_change(tensors)
        header = replace(words.header, tensors=tuple(one.info for one in tensors.values()))
        plan = writer.plan_file(header, mix, metadata)
        model_path = target.parent / "model.gguf"
        work.make_room(plan.size_bytes, at=target.parent)
        store = EncodedStore(base.folder, version=engine.llama_version)
        wanted = _Proof(
            base=base,
            mix=mix,
            segments=proof.read_reference(adapter_folder) or [],
            trained=trained,
            words=words,
        )

        def make() -> tuple[Evidence, Checksums]:
            with clock.step("merge"):
                before = _write(work, plan, tensors, model_path, store, wanted)
            # The file is hashed while it is proven, and goes to the disk, for which a bundle waits.
            with clock.step("proof"), ThreadPoolExecutor(2) as aside:
                work.on_progress("proof", 0.0)
                hashing = aside.submit(checksums, model_path)
                aside.submit(sync_file, model_path)
                return _prove(engine, model_path, tensors, wanted, before), hashing.result()

        evidence, sums = _without_what_is_broken(store, make)
        writer.keep_encoded(plan, tensors, model_path, store)
        with clock.step("bundle"):
            work.on_progress("bundle", 0.0)
            facts = facts_of(job, mix, base, gguf.header, trained, evidence.figures)
            report = proof_report(
                job, facts, evidence, adapter, sums, model_path, llama_version=engine.llama_version
            )
            write_bundle(target, model_path, sums, facts, report)
    return Exported(
        entries=bundle.ENTRIES, proof=_wire_figures(evidence.figures), seconds=clock.seconds
    )


def _without_what_is_broken(store: EncodedStore, make: Callable[[], _Made]) -> _Made:
    """Makes and proves a file; once more without kept tensors, where those took part in a failure.

    Raises:
        Fault: what `make` raises; nothing stays kept after EXPORT_QUANTIZATION_BROKEN.
    """
    try:
        return make()
    except Fault as fault:
        if fault.code is not FaultCode.EXPORT_QUANTIZATION_BROKEN:
            raise
        store.forget()
        if not store.was_used:
            raise
    return make()


def require_adapter(folder: Path) -> None:
    """Refuses before any work when there is no adapter.

    Raises:
        Fault: EXPORT_ADAPTER_MISSING.
    """
    missing = [name for name in (WEIGHTS_NAME, CONFIG_NAME) if not (folder / name).is_file()]
    if missing:
        raise Fault(
            FaultCode.EXPORT_ADAPTER_MISSING,
            f"The adapter lacks {' and '.join(missing)}; no conversion was started.",
        )


def _read_adapter(folder: Path) -> Adapter:
    config = read_json(folder / CONFIG_NAME, unique_keys=True)
    with SafetensorsFile(folder / WEIGHTS_NAME) as weights:
        return read_adapter(config, {name: span.shape for name, span in weights.tensors.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proof:
    """What one export is proven by.

    Attributes:
        segments: the trainer's reference; empty when the adapter came without one.
    """

    base: BaseModel
    mix: Quantization
    segments: Sequence[Segment]
    trained: templates.TrainedTemplate
    words: vocabulary.TrainedVocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """Figures of what the file was made of; None without a reference.

    Attributes:
        merge: None also when the file holds the merge as it is.
    """

    base: Figures | None = None
    merge: Figures | None = None


def _write(
    work: _Work,
    plan: FilePlan,
    tensors: Mapping[str, MergedTensor],
    path: Path,
    store: EncodedStore,
    wanted: _Proof,
) -> _Before:
    """Writes the file; the merge of a quantised one is measured by the same pass."""
    total, done = plan.element_count, 0
    threads, base = work.engine.thread_count, wanted.base.gguf
    found = _Before()

    def count(elements: int) -> None:
        nonlocal done
        done += elements
        work.on_progress("merge", 100.0 * done / total)

    def measure(take: OnRows) -> None:
        nonlocal found
        figures = proof.measure_base_and_merge(
            base, tensors, wanted.segments, thread_count=threads, on_rows=take
        )
        found = _Before(base=figures[0], merge=figures[1])

    is_measured = bool(wanted.segments) and wanted.mix.default_type.is_quantized
    writer.write_file(
        plan,
        tensors,
        path,
        encode=work.engine.kernel.encode,
        thread_count=threads,
        on_elements=count,
        store=store,
        ahead=measure if is_measured else None,
    )
    if wanted.segments and not is_measured:
        base_figures = proof.measure_base(base, wanted.segments, thread_count=threads)
        found = _Before(base=base_figures)
    return found


def _prove(
    engine: Engine,
    path: Path,
    tensors: Mapping[str, MergedTensor],
    wanted: _Proof,
    before: _Before,
) -> Evidence:
    row_errors = proof.read_back(path, tensors)
    behaviour = None
    with LlamaModel(path, thread_count=engine.thread_count) as model:
        if before.base is not None:
            behaviour = proof.prove(
                model, path, wanted.segments, wanted.mix, base=before.base, merge=before.merge
            )
        template = templates.prove_template(path, wanted.trained, wanted.segments, model)
        texts = vocabulary.prove_texts(wanted.words, wanted.segments, model)
        ends_by_itself = templates.prove_end(model, wanted.segments)
    return Evidence(
        behaviour=behaviour,
        row_errors=row_errors,
        template=template,
        texts=texts,
        tokens_written=wanted.words.written,
        ends_by_itself=ends_by_itself,
    )


def _wire_figures(figures: Figures | None) -> ProofFigures:
    if figures is None:
        return ProofFigures()
    return ProofFigures(
        adapter_top1_agreement=figures.adapter.top1_agreement,
        base_top1_agreement=figures.base.top1_agreement,
        adapter_mean_kl=figures.adapter.mean_kl,
        base_mean_kl=figures.base.mean_kl,
        loss_delta=figures.loss_delta,
        token_count=figures.token_count,
        proven=True,
    )


def _title(job: Export) -> str:
    return (
        f"{job.base_model.rsplit('/', 1)[-1]} tuned by {job.run.rsplit('/', 1)[-1] or 'tunesmith'}"
    )
