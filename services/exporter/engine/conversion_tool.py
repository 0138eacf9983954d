"""`python -m exporter.engine.conversion_tool`: runs llama.cpp's own converter on one base model.

A process of its own, because the converter brings torch with it, prints to its streams and may fail
in any way. Beside the GGUF it writes which tensors of the checkpoint became which tensors of the
file. Nothing here reaches the network, and no code of the model is ever executed.
"""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from exporter.domain.pretokenizer import match_pretokenizer


def main() -> int:
    """Convert; exit 0 when the GGUF and the record are complete."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    for folder in (arguments.vendor / "gguf-py", arguments.vendor):
        sys.path.insert(0, str(folder))
    # Both are llama.cpp's own, found on the path set above.
    conversion, gguf = (importlib.import_module(name) for name in ("conversion", "gguf"))

    hparams = conversion.ModelBase.load_hparams(arguments.model, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    kinds = {
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "f32": gguf.LlamaFileType.ALL_F32,
    }
    model = conversion.get_model_class(architecture)(
        arguments.model, kinds[arguments.outtype], arguments.outfile
    )
    record = _Recorder(model.modify_tensors)
    model.modify_tensors = record
    model.get_vocab_base_pre = _name_pretokenizer(model.get_vocab_base_pre, arguments.model)
    model.write()
    arguments.record.write_text(json.dumps(record.groups), encoding="utf-8")
    return 0


class _Recorder:
    """Stands in for `modify_tensors` and notes names: sources wait until a call yields targets."""

    def __init__(self, modify: Callable[..., Iterable[tuple[str, Any]]]) -> None:
        self._modify = modify
        self._waiting: dict[int | None, list[str]] = {}
        self.groups: list[dict[str, list[str]]] = []

    def __call__(self, data: Any, name: str, bid: int | None) -> Iterator[tuple[str, Any]]:
        waiting = self._waiting.setdefault(bid, [])
        waiting.append(name)
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


def _name_pretokenizer(known: Callable[[Any], str], model: Path) -> Callable[[Any], str]:
    def name(tokenizer: Any) -> str:
        try:
            return known(tokenizer)
        except NotImplementedError:
            document = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
            found = match_pretokenizer(document)
            if found is None:
                raise
            logging.getLogger("exporter").info("pre-tokenizer equals %s by structure", found)
            return found

    return name


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vendor", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--outfile", type=Path, required=True)
    parser.add_argument("--outtype", choices=("bf16", "f16", "f32"), required=True)
    parser.add_argument("--record", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
