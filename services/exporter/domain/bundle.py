"""The texts of a GGUF bundle: Modelfile, install scripts and README."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from exporter.domain.gates import Figures
from exporter.domain.quantization import Quantization
from exporter.domain.template_probes import GROUPS, PLAIN, Probed
from lexicon.names import OLLAMA_NAME_LENGTH_MAX

# Order of the files in the archive (001-37).
ENTRIES: Final = (
    "model.gguf", "Modelfile", "install.sh", "install.bat", "README.md", "export_proof.json"
)  # fmt: skip

# Ollama reserves memory for the whole context, so that a long one is not taken without being asked
# for.
MAX_DEFAULT_CONTEXT: Final = 8192

# Far beyond any sampling setting that does something.
LARGEST_SETTING: Final = 1e9

# Neither a shell nor a batch file nor Markdown finds anything to do in such a name.
_OLLAMA_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")

# Names of sampling settings in generation_config.json and in a Modelfile.
_SAMPLING: Final = (
    ("temperature", "temperature", float),
    ("top_p", "top_p", float),
    ("top_k", "top_k", int),
    ("min_p", "min_p", float),
    ("repetition_penalty", "repeat_penalty", float),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """What the texts say about a model.

    `ollama_name` is the name that the install scripts give the model. `template` is None when no
    TEMPLATE prints what the chat template prints. `outcomes` says what was compared, by key of a
    group of probes.
    """

    ollama_name: str
    base_model: str
    run: str
    quantization: Quantization
    template: str | None
    outcomes: Mapping[str, Probed]
    stops: Sequence[str]
    context_tokens: int
    generation: Mapping[str, Any]
    figures: Figures | None

    def __post_init__(self) -> None:
        # It is unquoted in scripts.
        assert _OLLAMA_NAME.fullmatch(self.ollama_name)
        assert len(self.ollama_name) <= OLLAMA_NAME_LENGTH_MAX


def modelfile(facts: BundleFacts) -> str:
    """Returns the Modelfile: source, template, stop words and the base's own sampling defaults."""
    lines = ["FROM ./model.gguf", ""]
    template = None if facts.template is None else quoted(facts.template, '"""')
    if template is not None:
        lines += [f"TEMPLATE {template}", ""]
    lines += [f"PARAMETER stop {stop}" for stop in map(quoted, facts.stops) if stop is not None]
    lines += sampling_lines(facts.generation)
    if facts.context_tokens > 0:
        lines.append(f"PARAMETER num_ctx {min(facts.context_tokens, MAX_DEFAULT_CONTEXT)}")
    return "\n".join(lines) + "\n"


def sampling_lines(generation: Mapping[str, Any]) -> list[str]:
    """PARAMETER lines for the base's generation settings; greedy bases get temperature 0."""
    if generation.get("do_sample") is False:
        return ["PARAMETER temperature 0"]
    lines = []
    for name, parameter, kind in _SAMPLING:
        value = generation.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        # JSON as Python reads it knows infinity, and a whole number too large for a float.
        if abs(value) <= LARGEST_SETTING:
            lines.append(f"PARAMETER {parameter} {kind(value)}")
    return lines


def stop_words(
    *, assistant_end: str, special_tokens: Sequence[str], end_tokens: Sequence[str]
) -> list[str]:
    """Returns the texts at which generation stops: end token and marks that end an answer."""
    marks = [token for token in special_tokens if token and token in assistant_end]
    return list(dict.fromkeys([*marks, *(token for token in end_tokens if token)]))


def install_sh(facts: BundleFacts) -> str:
    """A script for Linux and macOS that registers the model with Ollama."""
    return f"""#!/bin/sh
# Registers this model with Ollama as {facts.ollama_name}, or under the name given.
set -eu
cd "$(dirname "$0")"
name="${{1:-{facts.ollama_name}}}"
if ! command -v ollama >/dev/null 2>&1; then
  echo "ollama was not found. Install it from https://ollama.com, or use llama.cpp:" >&2
  echo "  llama-cli -m model.gguf" >&2
  exit 1
fi
if ! ollama list >/dev/null 2>&1; then
  echo "ollama does not answer. Start it with: ollama serve" >&2
  exit 1
fi
ollama create "$name" -f Modelfile
echo "Done. Try it: ollama run $name"
"""


def install_bat(facts: BundleFacts) -> str:
    """The same for Windows, with its line ends."""
    text = f"""@echo off
rem Registers this model with Ollama as {facts.ollama_name}, or under the name given.
setlocal
cd /d "%~dp0"
set "name=%~1"
if "%name%"=="" set "name={facts.ollama_name}"
where ollama >nul 2>nul
if errorlevel 1 (
  echo ollama was not found. Install it from https://ollama.com, or use llama.cpp. 1>&2
  exit /b 1
)
ollama list >nul 2>nul
if errorlevel 1 (
  echo ollama does not answer. Start it with: ollama serve 1>&2
  exit /b 1
)
ollama create "%name%" -f Modelfile
if errorlevel 1 exit /b 1
echo Done. Try it: ollama run %name%
"""
    return text.replace("\n", "\r\n")


def readme(facts: BundleFacts) -> str:
    """The README of the bundle."""
    return f"""# {facts.ollama_name}

A fine-tuned model, merged into one file and quantised as {facts.quantization}.

| | |
|---|---|
| Base model | {code_cell(facts.base_model)} |
| Run | {code_cell(facts.run)} |
| Quantisation | {facts.quantization} |

## Run it

- Ollama: `sh install.sh` (Linux, macOS) or `install.bat` (Windows), then
  `ollama run {facts.ollama_name}`.
- llama.cpp: `llama-cli -m model.gguf` or `llama-server -m model.gguf`.

## Chat template

{_template_text(facts)}

## Proof

{_proof_text(facts.figures)}

`export_proof.json` holds the same in figures, with the SHA-256 of `model.gguf`.
"""


def code_cell(text: str) -> str:
    """Any text as code in one cell of a Markdown table.

    Source: GitHub Flavored Markdown, tables (a pipe is escaped also in code) and code spans (a
    fence longer than each run of backticks inside).
    """
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    if not shown.strip():
        return "–"
    blank = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{blank}{shown}{blank}{fence}".replace("|", "\\|")


def _template_text(facts: BundleFacts) -> str:
    """What the TEMPLATE carries of the chat template, by what was compared."""
    inside = "The chat template of the training is inside `model.gguf`."
    if facts.template is None:
        return f"""{inside} The `Modelfile` holds
no TEMPLATE, since none was found that prints the same for:

{_listed(facts, Probed.DIFFERENT, required_only=True) or f"- {PLAIN.words}"}

Ollama then uses the chat template inside `model.gguf`. Where an old version of Ollama cannot read
it, update Ollama, or use a runtime that reads it, such as llama.cpp with `--jinja`."""
    text = f"""{inside} The TEMPLATE of the
`Modelfile` was compared with it and carries the same for:

{_listed(facts, Probed.EQUAL)}"""
    if different := _listed(facts, Probed.DIFFERENT):
        text += f"""

It does not carry:

{different}

For these use a runtime that reads the chat template from the GGUF, such as llama.cpp with
`--jinja`, or a current Ollama that was started with `OLLAMA_GO_TEMPLATE=0`."""
    if not_probed := _listed(facts, Probed.NOT_PROBED):
        text += f"""

Not compared, because the chat template itself refuses it or leaves it out:

{not_probed}"""
    return text


def _listed(facts: BundleFacts, outcome: Probed, *, required_only: bool = False) -> str:
    return "\n".join(
        f"- {group.words}"
        for group in GROUPS
        if facts.outcomes.get(group.key) is outcome and (group.is_required or not required_only)
    )


def _proof_text(figures: Figures | None) -> str:
    if figures is None:
        return "The adapter came without a reference, so that its behaviour could not be compared."
    return f"""Over {figures.token_count} tokens of held-out answers:

| compared with | same most likely token | mean KL divergence |
|---|---|---|
| the trained adapter | {figures.adapter.top1_agreement:.1%} | {figures.adapter.mean_kl:.4f} nats |
| the base model | {figures.base.top1_agreement:.1%} | {figures.base.mean_kl:.4f} nats |

The held-out loss differs from the adapter's by {figures.loss_delta:+.4f} nats per token."""


def quoted(text: str, *quotes: str) -> str | None:
    """The text as a value that Ollama reads as this text; None when it cannot be said.

    Ollama's quotes know no escapes: a value ends at the first line end before which its quotes are
    closed, and what cannot be printed is dropped.

    Source: parser of Ollama, whose reading `tunesmith.ollama.modelfile` repeats.
    """
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    for quote in quotes or ('"', '"""'):
        whole = quote + text + quote
        opens_longer = quote == '"' and whole.startswith('"""')
        places = [place for place, character in enumerate(whole) if character in "\r\n"]
        if not opens_longer and not any(_is_closed(whole[:place], quote) for place in places):
            return whole
    return None


def _is_closed(text: str, quote: str) -> bool:
    text = text.strip(" \t\r\n")
    return len(text) >= 2 * len(quote) and text.endswith(quote)
