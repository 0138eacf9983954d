"""What users send is data: no code of ours can run it, whatever it is called.

Attack list 1, 3, 12 and 17. The first half reads our own source; the second half plants what others
fell for in a model folder and loads it the way the trainer does.
"""

import ast
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lexicon.faults import Fault, FaultCode
from tests.support.training import FP32, a_tiny_model
from trainer.domain.plan import Base
from trainer.training.peft_library import load_base

ROOT = Path(__file__).parents[2]
# Modules that turn bytes into code or objects, or unpack archives that others made.
FORBIDDEN_MODULES = frozenset(
    {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "tarfile"}
)
FORBIDDEN_CALLS = frozenset(
    {
        "__import__",
        "compile",
        "eval",
        "exec",
        "np.load",
        "numpy.load",
        "os.popen",
        "os.system",
        "shutil.unpack_archive",
        "torch.hub.load",
        "torch.jit.load",
        "torch.load",
        "yaml.load",
        "yaml.unsafe_load",
    }
)
UNPACKING = frozenset({"extractall", "unpack_archive"})


def sources() -> list[Path]:
    generated = ROOT / "libs" / "tunesmith" / "api"
    found = [*ROOT.glob("services/**/*.py"), *ROOT.glob("libs/**/*.py")]
    return [path for path in found if not path.is_relative_to(generated)]


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_source_of_ours_names_a_loader_of_code() -> None:
    """Attack list 1: neither pickle nor its relatives, nor evaluation of text."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            found += [(path, name) for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        found += [(path, name) for name, _ in calls(path) if name in FORBIDDEN_CALLS]
    assert found == []


def test_no_source_of_ours_unpacks_an_archive_or_asks_a_shell() -> None:
    """Attack list 12 and 17: archives are written and never unpacked; tools run without a shell."""
    found = []
    for path in sources():
        for name, call in calls(path):
            shell = [word for word in call.keywords if word.arg == "shell"]
            if name.rpartition(".")[2] in UNPACKING or shell:
                found.append((path, ast.unparse(call)))
    assert found == []


def test_every_load_of_a_model_forbids_its_code_and_the_network() -> None:
    """Attack list 3"""
    loads = [
        (path, call)
        for path in sources()
        for name, call in calls(path)
        if name.endswith(".from_pretrained")
    ]
    assert loads
    for path, call in loads:
        said = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert said.get("trust_remote_code") == "False", (path, ast.unparse(call))
        assert said.get("local_files_only") == "True", (path, ast.unparse(call))


class Bomb:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path: Path, canary: Path) -> Path:
    """A whole model, and beside it a module that makes the canary when it is imported."""
    folder = tmp_path / "model"
    a_tiny_model().save_pretrained(folder)
    evil = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "__init__.py"):
        (folder / name).write_text(evil)
    return folder


def load(folder: Path) -> Any:
    base = Base(base_model="o/m", model_id="o/m", revision="", folder=str(folder), digest="d")
    return load_base(base, FP32)


def plant(folder: Path, fields: dict[str, Any], *, depth: int) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for _ in range(depth):
        fields = {"text_config": fields}
    path.write_text(json.dumps(config | fields))


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"auto_map": {"AutoModelForCausalLM": "../evil.Model"}, "trust_remote_code": True},
        {"_attn_implementation_internal": "stranger/kernel"},
        {"attn_implementation": "stranger/kernel", "_attn_implementation": "stranger/kernel"},
        {"_experts_implementation_internal": "stranger/kernel"},
        {"custom_pipelines": {"evil": {"impl": "evil.Pipeline"}}},
        {"quantization_config": {"quant_method": "evil", "auto_map": {"x": "evil.X"}}},
        {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Config"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_no_field_of_a_config_runs_code(
    folder: Path, canary: Path, fields: dict[str, Any], depth: int
) -> None:
    """Attack list 3: CVE-2026-4372, CVE-2026-5241 and the classic `auto_map`."""
    plant(folder, fields, depth=depth)
    codes = {FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED, FaultCode.MODEL_WEIGHTS_INVALID}
    # It may load, as what it is without the field, or be refused; it may not raise anything else.
    code = next(iter(codes))
    try:
        load(folder)
    except Fault as fault:
        code = fault.code
    assert code in codes
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pkl", "model.ckpt", "model.safetensors"],
)
def test_pickled_weights_are_refused_by_any_name(folder: Path, canary: Path, name: str) -> None:
    """Attack list 1: CVE-2025-32434 and CVE-2025-53002; also under the name of a safe format."""
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(Fault) as refused:
        load(folder)
    assert refused.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert not canary.exists()


def test_the_bomb_would_have_gone_off(canary: Path) -> None:
    """What the tests above rely on."""
    pickle.loads(pickle.dumps(Bomb(canary)))  # noqa: S301 - our own bytes.
    assert canary.exists()
