"""The training child: `python -m trainer.training CHANNEL TERMS`.

CHANNEL is that to the agent, TERMS a `pipe.Terms` as JSON. The libraries are chosen before
anything else is imported: Unsloth has to come before transformers and PEFT.
"""

import errno
import gc
import logging
import os
import sys
from collections.abc import Callable

import msgspec
import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain.host import judge, leaves_out_xformers
from trainer.domain.plan import TrainPlan
from trainer.pipe import Failed, Finished, Ready, Terms, UnslothFailed
from trainer.training import capabilities
from trainer.training.channel import RunChannel
from trainer.training.host import read_facts
from trainer.training.libraries import TorchLibraries, find_libraries, import_peft, import_unsloth
from trainer.training.memory import is_out_of_memory
from trainer.training.mlx_presence import is_apple_silicon

log = logging.getLogger("trainer.training")
# How the libraries in other languages word it.
NO_SPACE = os.strerror(errno.ENOSPC)


def main() -> None:
    """Serve plans until the agent has ended."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    terms = msgspec.json.decode(sys.argv[2], type=Terms)
    facts = read_facts()
    if leaves_out_xformers(facts):
        # A module that is None here cannot be imported; Unsloth then takes torch's own attention.
        sys.modules["xformers"] = None  # type: ignore[assignment]
    libraries = find_libraries(
        terms,
        has_cuda=torch.cuda.is_available(),
        is_apple=is_apple_silicon(),
        import_unsloth=import_unsloth,
        import_peft=import_peft,
        restart=_restart,
    )
    channel = RunChannel(sys.argv[1])
    notes = tuple(f"{finding.sentence} {finding.next_step}" for finding in judge(facts))
    serve(channel, libraries, notes)


def serve(channel: RunChannel, libraries: TorchLibraries, notes: tuple[str, ...]) -> None:
    """Train plan after plan; the base of one run stays in memory for the next."""
    # They import transformers and PEFT, which the libraries must have done first.
    from trainer.training.model_cache import ModelCache
    from trainer.training.run import train_run

    held = capabilities.found(has_unsloth=libraries.unsloth is not None)
    channel.send(Ready(cached_models=(), capabilities=held, notes=notes))
    channel.keep_pulse()
    model_cache = ModelCache()
    # Modules live as long as the process: without them the collection after a run is short.
    gc.collect()
    gc.freeze()
    while True:
        plan = channel.next_plan().plan
        _log_to(plan.places.log_path)
        ended = _ended(plan, lambda plan: train_run(plan, channel, libraries, model_cache))
        if not isinstance(ended, Finished):
            # Outside the handler, whose traceback holds the run's tensors.
            model_cache.drop()
        channel.send(ended)
        gc.collect()


def _ended(
    plan: TrainPlan, train: Callable[[TrainPlan], Finished]
) -> Finished | Failed | UnslothFailed:
    """How the run ended, whatever came of it."""
    try:
        return train(plan)
    except Fault as fault:
        if fault.code is FaultCode.RUNTIME_UNSLOTH_FAILED and plan.compute.unsloth_fallback:
            return UnslothFailed(cause=str(fault.metadata["cause"]))
        return _failed(fault)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Libraries in Rust panic by a class that is no Exception.
        log.exception("run %s ended unexpectedly", plan.attempt.run)
        return _failed(_as_fault(error))


def _restart(terms: Terms) -> None:
    """This process once more from its first line, under other terms, with the same channel."""
    encoded_terms = msgspec.json.encode(terms).decode()
    command = [sys.executable, "-m", "trainer.training", sys.argv[1], encoded_terms]
    os.execv(sys.executable, command)  # noqa: S606 - the same program again, without a shell


def _log_to(path: str) -> None:
    """Send everything that is printed from now on, by whichever library, to the run's log."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())


def _as_fault(error: BaseException) -> Fault:
    # Python's own MemoryError says nothing beside its name.
    first = next(iter(str(error).splitlines()), type(error).__name__)
    if is_out_of_memory(error):
        return Fault(FaultCode.RUNTIME_GPU_OOM, first)
    if getattr(error, "errno", None) == errno.ENOSPC or NO_SPACE in str(error):
        return Fault(FaultCode.STORAGE_FULL, "The node's disk is full.")
    if isinstance(error, RuntimeError):
        return Fault(FaultCode.RUNTIME_TRAINING_FAILED, f"Training failed: {first:.300}")
    return Fault(FaultCode.INTERNAL_UNEXPECTED, kind=type(error).__name__)


def _failed(fault: Fault) -> Failed:
    return Failed(
        code=fault.code.value,
        message=fault.message,
        stage=fault.stage.value if fault.stage else "",
        metadata=dict(fault.metadata),
        remedy=fault.remedy,
    )


if __name__ == "__main__":
    main()
