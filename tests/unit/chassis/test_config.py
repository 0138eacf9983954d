"""Settings: read early, refused clearly, and never shown when they are secret."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from chassis.config import describe, env, load, split_address
from lexicon.faults import Fault, FaultCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field of each kind."""

    model_name: str = env("MODEL_NAME", doc="Check that model exists on Hub")
    workers: int = env("WORKERS", default=2, doc="a number of processes")
    ratio: float = env("RATIO", default=0.5, doc="0 to 1")
    strict: bool = env("STRICT", default=False, doc="true or false")
    folder: Path | None = env("FOLDER", default=None, doc="a folder")
    key: str = env("KEY", default="", doc="a key", secret=True)
    url: str = env("URL", default="", doc="a URL")


def test_a_missing_variable_is_named_with_a_hint() -> None:
    """003-19"""
    with pytest.raises(Fault) as missing:
        load(Settings, {})
    assert missing.value.code is FaultCode.CONFIG_ENV_MISSING
    assert missing.value.message == "MODEL_NAME environment variable not set!"
    assert missing.value.remedy == "Hint: Check that model exists on Hub"


def test_texts_become_values_of_the_fields_types() -> None:
    settings = load(
        Settings,
        {"MODEL_NAME": "m", "WORKERS": "3", "RATIO": "0.25", "STRICT": "yes", "FOLDER": "/x"},
    )
    assert (settings.workers, settings.ratio, settings.strict) == (3, 0.25, True)
    assert settings.folder == Path("/x")


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(Settings, {"MODEL_NAME": "m", "WORKERS": ""}).workers == 2


@pytest.mark.parametrize("pair", [("WORKERS", "two"), ("STRICT", "perhaps"), ("RATIO", "x")])
def test_a_text_that_does_not_parse_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(Fault) as refused:
        load(Settings, {"MODEL_NAME": "m", pair[0]: pair[1]})
    assert refused.value.code is FaultCode.CONFIG_INVALID
    assert pair[0] in refused.value.message


def test_secrets_are_in_no_description_and_no_repr() -> None:
    """003-20, 003-26"""
    settings = load(
        Settings,
        {"MODEL_NAME": "m", "KEY": "topsecret", "URL": "postgresql://me:hunter2@host/db"},
    )
    shown = describe(settings)
    assert shown["KEY"] == "***"
    assert shown["URL"] == "postgresql://me:***@host/db"
    assert "topsecret" not in repr(settings)


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("from-file\n", encoding="utf-8")
    assert load(Settings, {"MODEL_NAME": "m", "KEY_FILE": str(path)}).key == "from-file"
    with pytest.raises(Fault, match="KEY_FILE"):
        load(Settings, {"MODEL_NAME": "m", "KEY_FILE": str(tmp_path / "none")})


def test_addresses_are_split_at_the_last_colon() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    for bad in ("", "host", "host:", ":80", "host:x", "host:70000"):
        with pytest.raises(ValueError, match=f"^{bad}$"):
            split_address(bad)
