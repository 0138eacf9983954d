"""The model hub's protocol against a server on this machine: good answers, bad ones, none."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lexicon.faults import TABLE, Fault, FaultCode
from objects.modelhub import ModelHub
from tests.support.modelhub_server import ModelHubServer, Repo

MODEL = "org/model"
FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}).encode(),
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 4096,
    "pytorch_model.bin": b"\x80\x04pickle",
    "nested/config.json": b"{}",
}


@pytest.fixture
def server() -> Iterator[ModelHubServer]:
    with ModelHubServer(repos={MODEL: Repo(files=dict(FILES))}) as running:
        yield running


@pytest.fixture
def hub(server: ModelHubServer, tmp_path: Path) -> ModelHub:
    return ModelHub(server.url, tmp_path / "cache", retry_wait_seconds=0.001)


async def load_failure(hub: ModelHub, model: str = MODEL, revision: str = "main") -> Fault:
    with pytest.raises(Fault) as caught:
        await hub.describe(model, revision)
    assert caught.value.code is FaultCode.DEP_MODEL_LOAD_FAILED
    return caught.value


async def test_a_model_is_described_with_its_configs(hub: ModelHub, server: ModelHubServer) -> None:
    """003-03"""
    found = await hub.describe(MODEL)
    assert found.revision_sha == server.repos[MODEL].sha
    assert found.config == {"architectures": ["LlamaForCausalLM"]}
    assert found.tokenizer_config == {"eos_token": "</s>"}
    assert found.template_source == "{{ messages }}"
    assert found.files == {name: len(content) for name, content in FILES.items()}
    assert found.tokenizer_files_present
    assert found.safetensors_present
    assert not found.gated
    assert found.redirected_to is None


async def test_describing_fetches_no_weights(hub: ModelHub, server: ModelHubServer) -> None:
    await hub.describe(MODEL)
    assert not [line for line in server.requests if "safetensors" in line]


async def test_a_commit_that_is_cached_is_not_fetched_again(
    hub: ModelHub, server: ModelHubServer
) -> None:
    """001-24"""
    await hub.describe(MODEL)
    server.requests.clear()
    await hub.describe(MODEL)
    assert not [line for line in server.requests if "/resolve/" in line]


async def test_a_cached_commit_needs_no_hub(hub: ModelHub, server: ModelHubServer) -> None:
    """001-24: what was fetched once is there when the hub is not."""
    found = await hub.describe(MODEL)
    folder = await hub.fetch(MODEL, found.revision_sha, patterns=["*.json"])
    server.fail(MODEL, 503)
    assert await hub.describe(MODEL, found.revision_sha) == found
    assert await hub.fetch(MODEL, found.revision_sha, patterns=["*.json"]) == folder


@pytest.mark.parametrize(
    ("files", "fetched"),
    [
        (("model.safetensors", "consolidated.safetensors"), {"model.safetensors"}),
        (
            ("model-00001-of-00001.safetensors", "original/a.safetensors", "config.json"),
            {"model-00001-of-00001.safetensors", "config.json"},
        ),
        (("weights.safetensors", "config.json"), {"weights.safetensors", "config.json"}),
    ],
)
async def test_weights_for_other_programs_are_not_fetched_a_second_time(
    files: tuple[str, ...], fetched: set[str], server: ModelHubServer, hub: ModelHub
) -> None:
    """004-02: a model of 14 GB is not 28 GB on the node."""
    server.repos["org/twice"] = Repo(files=dict.fromkeys(files, b"{}"))
    folder = await hub.fetch("org/twice", "main", patterns=["*"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == fetched


async def test_files_come_whole_and_never_pickled(hub: ModelHub) -> None:
    """Attack 1: what can be pickled is not fetched, whatever pattern asks for it."""
    folder = await hub.fetch(MODEL, "main", patterns=["*"])
    fetched = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert fetched == set(FILES) - {"pytorch_model.bin"}
    for name in fetched:
        assert (folder / name).read_bytes() == FILES[name]


async def test_what_is_missing_is_known_before_it_is_fetched(hub: ModelHub) -> None:
    """The bytes that a disk must have room for: all of a model at first, nothing of it later."""
    safe = sum(len(content) for name, content in FILES.items() if name != "pytorch_model.bin")
    assert await hub.missing_bytes(MODEL, "main", patterns=["*"]) == safe
    folder = await hub.fetch(MODEL, "main", patterns=["*.json"])
    assert hub.folder_of(MODEL) in folder.parents
    rest = sum(len(FILES[name]) for name in FILES if name.endswith(".json"))
    assert await hub.missing_bytes(MODEL, "main", patterns=["*"]) == safe - rest
    await hub.fetch(MODEL, "main", patterns=["*"])
    assert await hub.missing_bytes(MODEL, "main", patterns=["*"]) == 0


async def test_a_model_of_pickles_alone_has_no_weights(
    hub: ModelHub, server: ModelHubServer
) -> None:
    """Attack 1"""
    del server.repos[MODEL].files["model.safetensors"]
    assert not (await hub.describe(MODEL)).safetensors_present
    with pytest.raises(Fault) as caught:
        await hub.fetch(MODEL, "main", patterns=["*.safetensors", "*.bin"])
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID


@pytest.mark.parametrize(
    ("status", "variant"), [(401, "hub_401"), (403, "hub_403"), (404, "hub_404")]
)
async def test_refusals_are_told_apart_and_not_repeated(
    hub: ModelHub, server: ModelHubServer, status: int, variant: str
) -> None:
    """002-07, 002-08"""
    server.fail(MODEL, status)
    fault = await load_failure(hub)
    assert fault.remedy == TABLE[FaultCode.DEP_MODEL_LOAD_FAILED].variants[variant]
    assert fault.metadata["http_status"] == str(status)
    assert len(server.requests) == 1


async def test_a_model_that_is_not_there_is_a_404(hub: ModelHub) -> None:
    """003-03"""
    fault = await load_failure(hub, "org/modle")
    assert fault.metadata["http_status"] == "404"


async def test_a_revision_that_is_not_there_is_named(hub: ModelHub) -> None:
    fault = await load_failure(hub, revision="v9")
    assert "revision" in fault.message


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_passing_failure_is_ridden_out(
    hub: ModelHub, server: ModelHubServer, status: int
) -> None:
    server.fail(MODEL, status, times=2)
    assert (await hub.describe(MODEL)).files


async def test_a_lasting_failure_ends_in_bounded_tries(
    hub: ModelHub, server: ModelHubServer
) -> None:
    server.fail(MODEL, 503)
    fault = await load_failure(hub)
    assert "does not answer" in fault.message
    assert fault.retryable
    assert len(server.requests) <= 8


async def test_a_failure_between_the_files_is_ridden_out(
    hub: ModelHub, server: ModelHubServer
) -> None:
    await hub.describe(MODEL)
    server.fail(MODEL, 502, times=1)
    folder = await hub.fetch(MODEL, "main", patterns=["*.safetensors"])
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


async def test_a_cut_transfer_is_taken_up_and_comes_whole(
    hub: ModelHub, server: ModelHubServer
) -> None:
    server.cut(MODEL, "model.safetensors", after_bytes=300_000, times=2)
    folder = await hub.fetch(MODEL, "main", patterns=["*.safetensors"])
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


async def test_a_renamed_model_is_found_and_its_new_name_told(
    hub: ModelHub, server: ModelHubServer
) -> None:
    """003-05"""
    server.renames["old/name"] = MODEL
    found = await hub.describe("old/name")
    assert found.redirected_to == MODEL
    assert found.config


async def test_a_gated_model_says_so(hub: ModelHub, server: ModelHubServer) -> None:
    server.repos[MODEL].gated = True
    assert (await hub.describe(MODEL)).gated


async def test_a_hub_that_is_not_there_fails_soon(tmp_path: Path) -> None:
    began = time.monotonic()
    hub = ModelHub("http://127.0.0.1:9", tmp_path, retry_wait_seconds=0.001)
    fault = await load_failure(hub)
    assert "does not answer" in fault.message
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text",
    [
        "http://169.254.169.254/latest",
        "../../etc/passwd",
        "org/../model",
        "org/model?x=1",
        "org/model#x",
        "user@host/model",
        "a/b/c",
        "",
        "org/mod\x00el",
        "file:///etc/passwd",
        "org%2fmodel",
        "x" * 300,
    ],
)
async def test_only_ids_of_the_hub_are_asked_for(
    hub: ModelHub, server: ModelHubServer, text: str
) -> None:
    """Attack 13: no host, no path and no scheme of a user's choosing."""
    await load_failure(hub, text)
    assert not server.requests


async def test_a_config_that_is_not_json_is_refused(hub: ModelHub, server: ModelHubServer) -> None:
    for content in (b"{", b"[1]", b"[" * 100_000):
        server.repos[MODEL].files["config.json"] = content
        with pytest.raises(Fault) as caught:
            await hub.describe(MODEL)
        assert caught.value.code is FaultCode.MODEL_CONFIG_INVALID


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" + b"{}," * 1_000_000 + b"{}]", "1,000,000 parts"),
        (b'{"a": ' + b"[" * 2_000_000, "1,000,000 parts"),
        (b'{"a": "' + b" " * (16 << 20) + b'"}', "16 MiB"),
    ],
)
async def test_a_config_that_would_fill_the_memory_is_refused(
    hub: ModelHub, server: ModelHubServer, content: bytes, words: str
) -> None:
    """Attack 10: three bytes of text are a hundred in memory."""
    server.repos[MODEL].files["config.json"] = content
    with pytest.raises(Fault) as caught:
        await hub.describe(MODEL)
    assert caught.value.code is FaultCode.MODEL_CONFIG_INVALID
    assert words in caught.value.message


@pytest.mark.parametrize("kind", ["gated", "private"])
async def test_what_one_user_may_read_is_not_given_to_another(
    tmp_path: Path, server: ModelHubServer, kind: str
) -> None:
    """003-26, 002-07: one cache for all, and the hub is asked for each."""
    server.repos[MODEL].tokens = frozenset({"hf_of-ada"})
    setattr(server.repos[MODEL], kind, True)
    nobody = ModelHub(server.url, tmp_path / "cache", retry_wait_seconds=0.01)
    ada, eve = nobody.with_token("hf_of-ada"), nobody.with_token("hf_of-eve")
    found = await ada.describe(MODEL)
    await ada.fetch(MODEL, found.revision_sha, patterns=["*"])
    for stranger in (nobody, eve):
        for revision in ("main", found.revision_sha):
            with pytest.raises(Fault) as caught:
                await stranger.describe(MODEL, revision)
            assert caught.value.code is FaultCode.DEP_MODEL_LOAD_FAILED
            assert caught.value.metadata["http_status"] == "401"
            assert "HF_TOKEN" in caught.value.remedy
            assert "hf_of" not in str(caught.value)
            with pytest.raises(Fault):
                await stranger.fetch(MODEL, revision, patterns=["*.json"])
    server.requests.clear()
    await ada.describe(MODEL, found.revision_sha)
    # Files are not sent again; one question is.
    assert [line.partition(" ")[0] for line in server.requests] == ["HEAD"]
