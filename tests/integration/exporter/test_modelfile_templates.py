"""Whole exports: the Modelfile's TEMPLATE prints what the chat template prints, or is not there."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from corpus import chat
from exporter.domain import go_template
from exporter.domain.template_probes import (
    GROUPS,
    Conversation,
    chat_turns,
    ollama_data,
    rendered,
)
from exporter.engine.base import prepare_base
from exporter.engine.export import Engine
from exporter.engine.llama_model import LlamaModel
from exporter.engine.templates import prove_template, read_template
from exporter.engine.tokenizer_file import read_tokenizer
from exporter.engine.weights import GgufFile
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.making import ANVIL, export_bundle
from tunesmith.ollama.modelfile import parse

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FAMILIES = Path(__file__).resolve().parents[2] / "golden" / "exporter" / "templates"
THOUGHTS = "- thoughts (`<think>`) inside earlier answers\n"
RESULTS = "- calls of tools and their results\n"


def with_template(adapter: Path, folder: Path, source: str) -> Path:
    """The adapter as if it had been trained with this chat template."""
    shutil.copytree(adapter, folder)
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return folder


def texts_of(bundle: Path) -> tuple[str, str, dict[str, str]]:
    """Modelfile, README, and what the probes gave."""
    with zipfile.ZipFile(bundle) as archive:
        modelfile, readme = archive.read("Modelfile").decode(), archive.read("README.md").decode()
        report = json.loads(archive.read("export_proof.json"))
    assert report["modelfile_template"] is ("TEMPLATE" in modelfile)
    found: dict[str, str] = report["modelfile_template_probes"]
    return modelfile, readme, found


def test_a_template_that_drops_thoughts_is_exported_without_another_one(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Earlier thoughts are dropped as Qwen3 drops them, which no TEMPLATE can."""
    source = (FAMILIES / "qwen3_thinking.jinja").read_text(encoding="utf-8")
    adapter = with_template(adapter_of(), tmp_path / "adapter", source)
    export_bundle(engine, adapter, tmp_path)
    modelfile, readme, found = texts_of(tmp_path / "bundle.zip")
    assert found["thoughts_in_history"] == "different"
    assert parse(modelfile).template == ""
    assert f"prints the same for:\n\n{THOUGHTS}" in readme
    assert "carries the same" not in readme


def test_the_exported_template_prints_what_the_readme_says(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of()
    export_bundle(engine, adapter, tmp_path)
    modelfile, readme, found = texts_of(tmp_path / "bundle.zip")
    source, template = parse(modelfile).template, chat.load(adapter)

    def render(conversation: Conversation, add_prompt: bool) -> str:
        return template.render_turns(
            chat_turns(conversation), tools=conversation.tools, add_generation_prompt=add_prompt
        )

    carried, _, lacking = readme.partition("It does not carry:")
    for group in GROUPS:
        are_equal = all(
            go_template.render(source, ollama_data(conversation)) == text
            for conversation, text in rendered(render, group)
        )
        assert are_equal is (found[group.key] != "different")
        assert (f"- {group.words}\n" in carried) is (found[group.key] == "equal")
    assert THOUGHTS in carried
    # The demo's model marks any role, and a TEMPLATE knows three.
    assert RESULTS in lacking.partition("Not compared")[0]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Line 77:", id="long texts"),
        pytest.param("Question 40?", id="40 turns"),
        pytest.param("Nothing divides it.", id="thoughts in history"),
        pytest.param("Be kind.", id="a group that is carried beyond what is required"),
    ],
)
def test_a_tokenizer_that_differs_over_one_group_is_found(
    text: str, engine: Engine, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(ANVIL, folder)
    base = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
    with GgufFile(base.gguf) as file:
        header = file.header
    with LlamaModel(base.gguf, thread_count=1, vocabulary_only=True) as model:
        trained = read_template(folder, header, read_tokenizer(folder))
        sound = prove_template(base.gguf, trained, [], model)
        assert sound.texts_equal > 2 * len(GROUPS)
        # The training's tokenizer takes this text as a whole, and the GGUF's does not.
        tokenizer = read_tokenizer(folder)
        tokenizer.add_tokens([text])
        trained = read_template(folder, header, tokenizer)
        with pytest.raises(Fault, match="different tokens") as caught:
            prove_template(base.gguf, trained, [], model)
    assert caught.value.code is FaultCode.EXPORT_TEMPLATE_MISMATCH
