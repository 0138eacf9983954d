"""Names of resources: their form, and the values that they consist of."""

import re
from dataclasses import dataclass
from typing import Self

from lexicon.faults import Fault, FaultCode

ID_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
ID_LENGTH_MAX = 63
# A version number fits into a signed 64-bit integer and has no leading zero.
NUMBER_PATTERN = r"[1-9][0-9]{0,17}"
# Longer than any valid name; longer text is refused before it is parsed.
NAME_LENGTH_MAX = 256
# Characters of a refused name that a message repeats.
ECHO_LENGTH_MAX = 80
# Longest name of a model that Ollama takes.
# Source: types/model/name.go of Ollama.
OLLAMA_NAME_LENGTH_MAX = 80
# So much of a run's id distinguishes models of one base.
_OLLAMA_RUN_LENGTH = 8

_ID = re.compile(ID_PATTERN)


def check_id(text: str, *, field: str) -> str:
    """The id itself if it is valid: 1 to 63 lower-case letters, digits and inner hyphens.

    Raises:
        Fault: INPUT_NAME_INVALID.
    """
    if len(text) > ID_LENGTH_MAX or not _ID.fullmatch(text):
        raise Fault(
            FaultCode.INPUT_NAME_INVALID,
            f"{field} must be 1 to 63 lower-case letters, digits and hyphens, not {_echo(text)}.",
            field=field,
        )
    return text


def ollama_name(base_model: str, run: str) -> str:
    """The name that a run's model gets in Ollama: of the base, and the end of the run's id.

    Install scripts of a bundle and `tunesmith pull --ollama` give the same one. It is made of
    lower-case letters, digits, `-` and `.`, 1 to 80 of them.
    """
    suffix = re.sub(r"[^a-z0-9]+", "-", run.rsplit("/", 1)[-1].lower())
    suffix = suffix.strip("-")[-_OLLAMA_RUN_LENGTH:].strip("-")
    room = OLLAMA_NAME_LENGTH_MAX - len(suffix) - 1
    base = re.sub(r"[^a-z0-9.]+", "-", base_model.rsplit("/", 1)[-1].lower()).strip("-.")
    base = base[:room].rstrip("-.") or "model"
    return "-".join(part for part in (base, suffix) if part)


def quoted(value: object, *, characters: int = 40) -> str:
    """A given text in quotes, shortened for a message; both quotes are always present."""
    if isinstance(value, str):
        return repr(value if len(value) <= characters else f"{value[:characters]}…")
    text = repr(value)
    return text if len(text) <= characters else f"{text[:characters]}…"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectName:
    """`projects/{project}`."""

    project: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "projects/{project}"))

    def __str__(self) -> str:
        return f"projects/{self.project}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunName:
    """`projects/{project}/runs/{run}`."""

    project: str
    run: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "projects/{project}/runs/{run}"))

    def __str__(self) -> str:
        return f"projects/{self.project}/runs/{self.run}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetName:
    """`projects/{project}/datasets/{dataset}`."""

    project: str
    dataset: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "projects/{project}/datasets/{dataset}"))

    def __str__(self) -> str:
        return f"projects/{self.project}/datasets/{self.dataset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersionName:
    """`projects/{project}/datasets/{dataset}/versions/{number}`; numbers begin at 1."""

    project: str
    dataset: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        parts = _parse(text, "projects/{project}/datasets/{dataset}/versions/{number}")
        return cls(project=parts["project"], dataset=parts["dataset"], number=int(parts["number"]))

    @property
    def dataset_name(self) -> DatasetName:
        """The dataset that it is a version of."""
        return DatasetName(project=self.project, dataset=self.dataset)

    def __str__(self) -> str:
        return f"{self.dataset_name}/versions/{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """`models/{model}` in the catalog, or `projects/{project}/models/{model}` added by a user."""

    project: str | None = None
    model: str

    @classmethod
    def parse(cls, text: str) -> Self:
        if text.startswith("models/"):
            return cls(**_parse(text, "models/{model}"))
        return cls(**_parse(text, "projects/{project}/models/{model}"))

    def __str__(self) -> str:
        catalog = f"models/{self.model}"
        return catalog if self.project is None else f"projects/{self.project}/{catalog}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactName:
    """`projects/{project}/artifacts/{artifact}`."""

    project: str
    artifact: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "projects/{project}/artifacts/{artifact}"))

    def __str__(self) -> str:
        return f"projects/{self.project}/artifacts/{self.artifact}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportName:
    """`projects/{project}/exports/{export}`."""

    project: str
    export: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "projects/{project}/exports/{export}"))

    def __str__(self) -> str:
        return f"projects/{self.project}/exports/{self.export}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeName:
    """`nodes/{node}`."""

    node: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "nodes/{node}"))

    def __str__(self) -> str:
        return f"nodes/{self.node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountName:
    """`projects/{project}/account`, the one account of a project."""

    project: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "projects/{project}/account"))

    def __str__(self) -> str:
        return f"projects/{self.project}/account"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionName:
    """`projects/{project}/transactions/{transaction}`."""

    project: str
    transaction: str

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(**_parse(text, "projects/{project}/transactions/{transaction}"))

    def __str__(self) -> str:
        return f"projects/{self.project}/transactions/{self.transaction}"


def _parse(text: str, template: str) -> dict[str, str]:
    match = None
    if len(text) <= NAME_LENGTH_MAX:
        match = _pattern(template).fullmatch(text)
    if match is None:
        raise Fault(
            FaultCode.INPUT_NAME_INVALID,
            f"A name must have the form {template}, not {_echo(text)}.",
            form=template,
        )
    return match.groupdict()


def _pattern(template: str) -> re.Pattern[str]:
    def group(match: re.Match[str]) -> str:
        part = match.group(1)
        return f"(?P<{part}>{NUMBER_PATTERN if part == 'number' else ID_PATTERN})"

    return re.compile(re.sub(r"\{(\w+)\}", group, template))


def _echo(text: str) -> str:
    """The refused text, shortened and with everything unprintable escaped."""
    short = text if len(text) <= ECHO_LENGTH_MAX else text[:ECHO_LENGTH_MAX] + "…"
    return ascii(short) if not short.isprintable() else f"'{short}'"
