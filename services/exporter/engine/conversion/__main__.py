"""`python -m exporter.engine.conversion`: runs llama.cpp's own converter on one base model.

A process of its own, because the converter brings torch with it, prints to its streams and may fail
in any way. Beside the GGUF it writes which tensors of the checkpoint became which tensors of the
file.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from exporter.engine.conversion.patched_converter import convert
from exporter.engine.conversion.tokenizer_reader import once_read


def main() -> int:
    """Convert; exit 0 when the GGUF and the record are complete."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    once_read()
    groups = convert(
        arguments.model,
        arguments.outfile,
        vendor=arguments.vendor,
        outtype=arguments.outtype,
        whole_tensors=arguments.whole_tensors,
    )
    arguments.record.write_text(json.dumps(groups), encoding="utf-8")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vendor", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--outfile", type=Path, required=True)
    parser.add_argument("--outtype", choices=("bf16", "f16", "f32"), required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--whole-tensors", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    code = main()
    # Everything is written; taking libraries apart takes a tenth of a second for nothing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
