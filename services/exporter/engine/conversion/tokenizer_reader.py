"""`python -m exporter.engine.conversion.tokenizer_reader`: config and tokenizer read ahead.

Reading a tokenizer with 150,000 tokens takes 250 MB for a moment, and llama.cpp's converter needs
as much for torch; beside torch, transformers alone takes seconds to load. So a process without
torch reads both by transformers, writes down what converters ask of them and, where they are large,
has ended before torch is loaded. `transformers_stand_in` starts it and answers from what it wrote.
"""

import argparse
import ast
import copyreg
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer

# The text by whose tokens the converter knows a pre-tokenizer.
PROBE: Final = re.compile(r"^ +chktxt = ('.*')$", re.MULTILINE)


class Added(msgspec.Struct, frozen=True, kw_only=True):
    """A token beside the vocabulary, as `tokenizers.AddedToken`."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What a tokenizer says of itself.

    Attributes:
        spelled: added tokens after they were encoded and decoded.
        rules: what `tokenizer.json` says of splitting.
    """

    vocab: dict[str, int]
    vocab_size: int
    added_vocab: dict[str, int]
    added: dict[int, Added]
    special_tokens: list[str]
    special_ids: list[int]
    probe: str
    probe_ids: list[int]
    spelled: dict[str, str]
    rules: dict[str, Any]


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """What was read ahead of a model's folder.

    Attributes:
        config: `config.json` with the defaults of its model type; None when transformers does not
            read it, which converters meet themselves.
        tokenizer: None where converters take a sentencepiece model instead.
    """

    config: dict[Any, Any] | None
    tokenizer: Answers | None


def main() -> int:
    """Read, write down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    arguments = parser.parse_args()
    found = PROBE.search(arguments.probe.read_text(encoding="utf-8"))
    probe = ast.literal_eval(found[1]) if found else ""
    # transformers does without torch where there is none.
    sys.modules["torch"] = None  # type: ignore[assignment]
    once_read()
    tokenizer = None
    # Converters take a sentencepiece model where there is one.
    folder: Path = arguments.model
    if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        from transformers import AutoTokenizer

        tokenizer = answers_of(
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
            probe,
        )
    ahead = Ahead(config=_config_of(folder), tokenizer=tokenizer)
    arguments.answers.write_bytes(msgspec.msgpack.encode(ahead))
    return 0


def _config_of(folder: Path) -> dict[Any, Any] | None:
    """The config as transformers completes it."""
    from transformers import AutoConfig

    try:
        read = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config: dict[Any, Any] = read.to_dict()
        # Converters get what JSON can say, or read the config themselves.
        msgspec.msgpack.encode(config)
    except Exception:  # noqa: BLE001 - whatever a config is refused for, the converter says it
        return None
    return config


def answers_of(tokenizer: Any, probe: str) -> Answers:
    """What a transformers tokenizer says of itself."""
    added = {
        number: Added(**{name: getattr(one, name) for name in Added.__struct_fields__})
        for number, one in tokenizer.added_tokens_decoder.items()
    }
    unchanged = [one.content for one in added.values() if not one.normalized]
    return Answers(
        vocab=tokenizer.get_vocab(),
        vocab_size=tokenizer.vocab_size,
        added_vocab=tokenizer.get_added_vocab(),
        added=added,
        special_tokens=tokenizer.all_special_tokens,
        special_ids=tokenizer.all_special_ids,
        probe=probe,
        probe_ids=tokenizer.encode(probe),
        spelled={
            text: tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
            for text in unchanged
        },
        rules=rules_of(tokenizer.backend_tokenizer),
    )


def rules_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tokenizer.json` says of splitting, without the vocabulary that it also holds."""
    split, kind = tokenizer.pre_tokenizer, type(tokenizer.model).__name__
    return {
        "pre_tokenizer": None if split is None else json.loads(split.__getstate__()),
        "model": {"type": kind, "ignore_merges": getattr(tokenizer.model, "ignore_merges", None)},
    }


def once_read() -> None:
    """Makes copies of a tokenizer the tokenizer itself: transformers copies it by way of its text.

    A reduction to a name makes `copy.deepcopy` return the object.
    """
    copyreg.pickle(Tokenizer, lambda _tokenizer: "tokenizer")


if __name__ == "__main__":
    sys.exit(main())
