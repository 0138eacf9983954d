"""What the pinned llama.cpp's converter must keep for `exporter.engine.conversion`, place by place.

Our parts take the place of attributes and methods of the converter. A new pin that renames one, or
calls it otherwise, would leave a part unused without a word: here it fails by name. The converter
is read, not run; that each check can fail is shown by a change planted in its source.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from deploy.local import llama_build
from exporter.engine.conversion.patched_converter import ROTATIONS
from exporter.engine.conversion.tokenizer_reader import PROBE

PACKAGE = "conversion/__init__.py"
MODEL = "conversion/base.py"
LLAMA = "conversion/llama.py"
CONSTANTS = "gguf-py/gguf/constants.py"
LAZY = "gguf-py/gguf/lazy.py"
UTILITY = "gguf-py/gguf/utility.py"
VOCABULARY = "gguf-py/gguf/vocab.py"
WRITER = "gguf-py/gguf/gguf_writer.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The converter's files, some of them with another text."""

    folder: Path
    changed: Mapping[str, str] = field(default_factory=dict)

    def text(self, file: str) -> str:
        return self.changed.get(file) or (self.folder / file).read_text(encoding="utf-8")

    def tree(self, file: str) -> ast.Module:
        return parsed(self.text(file))

    def definition(self, file: str, name: str) -> ast.AST:
        """A class, a function or a method (`Class.method`); an empty module when it is absent."""
        node: ast.AST = self.tree(file)
        for part in name.split("."):
            node = next((one for one in definitions(node) if one.name == part), ast.Module([], []))
        return node

    def model_methods(self, name: str) -> Iterator[ast.AST]:
        """The methods of this name in all model classes."""
        for path in sorted((self.folder / "conversion").glob("*.py")):
            for node in definitions(self.tree(f"conversion/{path.name}")):
                yield from (one for one in definitions(node) if one.name == name)


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def definitions(node: ast.AST) -> list[ast.FunctionDef | ast.ClassDef]:
    """Classes and functions of a body."""
    body = getattr(node, "body", [])
    return [one for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef)]


def required(node: ast.AST) -> list[str]:
    """The names of the parameters that a caller has to give."""
    if not isinstance(node, ast.FunctionDef):
        return []
    given = [argument.arg for argument in node.args.args]
    alone = [
        argument.arg
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if default is None
    ]
    return given[: len(given) - len(node.args.defaults)] + alone


def codes(node: ast.AST) -> set[str]:
    """All statements and expressions in a node, as ast spells them."""
    return {ast.unparse(one) for one in ast.walk(node) if isinstance(one, ast.stmt | ast.expr)}


def statements(node: ast.AST) -> list[str]:
    """The statements of a body, one after another."""
    return [ast.unparse(one) for one in getattr(node, "body", [])]


def fields(node: ast.AST) -> set[str]:
    """The attributes that a class declares or assigns."""
    found = set()
    for one in getattr(node, "body", []):
        match one:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found.add(name)
    return found


def all_take(source: Source, method: str, *names: str) -> bool:
    """Whether a method takes these in every model class that has it, and some class has it."""
    found = [required(one) for one in source.model_methods(method)]
    return bool(found) and all(each == list(names) for each in found)


def handles_known_rotations_only(source: Source) -> bool:
    """Whether the kinds that the converter tells apart are those that we let pass."""
    method = source.definition(MODEL, "TextModel.set_gguf_parameters")
    kinds = {
        constant.value
        for one in ast.walk(method)
        if isinstance(one, ast.Compare) and "rope_type" in ast.unparse(one.left)
        for constant in one.comparators
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    # Its only writer is named by `patched_converter` itself.
    return bool(kinds) and kinds - {"dynamic"} <= ROTATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One thing of the converter that our parts rely on.

    Attributes:
        ours: what relies on it.
        planted: a text of the file, and what a new pin might have in its place.
    """

    ours: str
    file: str
    needs: str
    holds: Callable[[Source], bool]
    planted: tuple[str, str]


PLACES = (
    Place(
        ours="patched_converter.convert", file=PACKAGE,
        needs="`conversion` gives ModelBase, ModelType, get_model_architecture, get_model_class",
        holds=lambda source: {"ModelBase", "ModelType", "get_model_architecture"} <= {
            alias.name
            for one in source.tree(PACKAGE).body if isinstance(one, ast.ImportFrom)
            for alias in one.names
        } and required(source.definition(PACKAGE, "get_model_class")) == ["name"],
        planted=("def get_model_class(name: str, ", "def get_model_class(name: str, kind, "),
    ),
    Place(
        ours="patched_converter.convert", file=MODEL,
        needs="ModelBase.load_hparams(dir_model, is_mistral_format)",
        holds=lambda source: required(source.definition(MODEL, "ModelBase.load_hparams"))
        == ["dir_model", "is_mistral_format"],
        planted=("def load_hparams(dir_model: Path, ", "def load_hparams(folder: Path, "),
    ),
    Place(
        ours="patched_converter.convert", file=MODEL,
        needs="get_model_architecture(hparams, model_type) and ModelType.TEXT",
        holds=lambda source: required(source.definition(MODEL, "get_model_architecture"))
        == ["hparams", "model_type"]
        and "TEXT" in fields(source.definition(MODEL, "ModelType")),
        planted=("    TEXT = 1\n", "    LANGUAGE = 1\n"),
    ),
    Place(
        ours="patched_converter.convert", file=MODEL,
        needs="a model class is made from (dir_model, ftype, fname_out) alone",
        holds=lambda source: required(source.definition(MODEL, "ModelBase.__init__"))
        == ["self", "dir_model", "ftype", "fname_out"],
        planted=("is_big_endian: bool = False,\n", "is_big_endian: bool,\n"),
    ),
    Place(
        ours="patched_converter.convert", file=CONSTANTS,
        needs="gguf.LlamaFileType has MOSTLY_BF16, MOSTLY_F16, ALL_F32",
        holds=lambda source: {"MOSTLY_BF16", "MOSTLY_F16", "ALL_F32"}
        <= fields(source.definition(CONSTANTS, "LlamaFileType")),
        planted=("    MOSTLY_BF16 ", "    BF16_MOSTLY "),
    ),
    Place(
        ours="patched_converter.convert", file=MODEL,
        needs="write() prepares tensors, then metadata, then writes header, settings, tensors",
        holds=lambda source: statements(source.definition(MODEL, "ModelBase.write")) == [
            "self.prepare_tensors()",
            "self.prepare_metadata(vocab_only=False)",
            "self.gguf_writer.write_header_to_file(path=self.fname_out)",
            "self.gguf_writer.write_kv_data_to_file()",
            "self.gguf_writer.write_tensors_to_file(progress=True)",
            "self.gguf_writer.close()",
        ],
        planted=(
            "        self.prepare_tensors()\n        self.prepare_metadata(vocab_only=False)\n",
            "        self.prepare_metadata(vocab_only=False)\n        self.prepare_tensors()\n",
        ),
    ),
    Place(
        ours="patched_converter._streaming", file=MODEL,
        needs="prepare_tensors() takes no argument in any model class",
        holds=lambda source: all_take(source, "prepare_tensors", "self"),
        planted=("def prepare_tensors(self):", "def prepare_tensors(self, shard):"),
    ),
    Place(
        ours="patched_converter._Recorder", file=MODEL,
        needs="prepare_tensors() calls self.modify_tensors(data_torch, name, bid) on the instance",
        holds=lambda source: "self.modify_tensors(data_torch, name, bid)"
        in codes(source.definition(MODEL, "ModelBase.prepare_tensors")),
        planted=("in (self.modify_tensors(data_torch, name, bid)):",
                 "in (self.modify_tensor(data_torch, name, bid)):"),
    ),
    Place(
        ours="patched_converter._Recorder", file=LLAMA,
        needs="modify_tensors(data_torch, name, bid) in every model class",
        holds=lambda source: all_take(
            source, "modify_tensors", "self", "data_torch", "name", "bid"
        ),
        planted=("def modify_tensors(self, data_torch: Tensor, name: str, bid: int | None)",
                 "def modify_tensors(self, data_torch: Tensor, name: str)"),
    ),
    Place(
        ours="patched_converter._name_pretokenizer", file=MODEL,
        needs="get_vocab_base() calls self.get_vocab_base_pre(tokenizer) on the instance",
        holds=lambda source: "self.get_vocab_base_pre(tokenizer)"
        in codes(source.definition(MODEL, "TextModel.get_vocab_base"))
        and all_take(source, "get_vocab_base_pre", "self", "tokenizer"),
        planted=("tokpre = self.get_vocab_base_pre(tokenizer)",
                 "tokpre = get_vocab_base_pre(tokenizer)"),
    ),
    Place(
        ours="patched_converter._name_pretokenizer", file=MODEL,
        needs="get_vocab_base_pre() raises NotImplementedError for an unknown pre-tokenizer",
        holds=lambda source: any(
            isinstance(one, ast.Raise) and ast.unparse(one).startswith("raise NotImplemented")
            for one in ast.walk(source.definition(MODEL, "TextModel.get_vocab_base_pre"))
        ),
        planted=('raise NotImplementedError("BPE pre-tokenizer', 'raise ValueError("BPE pre-tok'),
    ),
    Place(
        ours="patched_converter._giving_back", file=MODEL,
        needs="_set_vocab_gpt2() calls self.get_vocab_base(), which takes nothing in any class",
        holds=lambda source: "self.get_vocab_base()"
        in codes(source.definition(MODEL, "TextModel._set_vocab_gpt2"))
        and all_take(source, "get_vocab_base", "self"),
        planted=("def get_vocab_base(self) ->", "def get_vocab_base(self, limit) ->"),
    ),
    Place(
        ours="patched_converter._giving_back", file=MODEL,
        needs="prepare_metadata() calls self.set_vocab(), which takes nothing in any class",
        holds=lambda source: "self.set_vocab()"
        in codes(source.definition(MODEL, "TextModel.prepare_metadata"))
        and all_take(source, "set_vocab", "self"),
        planted=("        self.set_vocab()\n", "        self.write_tokens()\n"),
    ),
    Place(
        ours="patched_converter._require_known_rotation", file=MODEL,
        needs="the rotary scalings that a GGUF has are those that we let pass",
        holds=handles_known_rotations_only,
        planted=('elif rope_type == "dynamic":', 'elif rope_type == "spiral":'),
    ),
    Place(
        ours="patched_converter._require_known_rotation", file=MODEL,
        needs="rotary settings are rope_parameters, or rope_scaling",
        holds=lambda source: "self.hparams.get('rope_parameters', self.hparams.get('rope_scaling'))"
        in codes(source.definition(MODEL, "TextModel.__init__")),
        planted=('self.hparams.get("rope_parameters", ', 'self.hparams.get("rotary", '),
    ),
    Place(
        ours="patched_converter.exact_powers", file=LLAMA,
        needs="rotary factors are powers of a number by float32 tensors",
        holds=lambda source: "base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)"
        in codes(source.tree(LLAMA)),
        planted=("base ** (torch.arange(", "torch.pow(base, torch.arange("),
    ),
    Place(
        ours="patched_converter._allocating", file=WRITER,
        needs="write_header_to_file() calls self.open_output_file(path), before it writes",
        holds=lambda source: "self.open_output_file(path)"
        in statements(source.definition(WRITER, "GGUFWriter.write_header_to_file"))[:2]
        and required(source.definition(WRITER, "GGUFWriter.open_output_file")) == ["self"],
        planted=("        self.open_output_file(path)\n\n", "        self.open_files(path)\n\n"),
    ),
    Place(
        ours="patched_converter._allocating", file=WRITER,
        needs="a writer has a file in fout for each dictionary in tensors",
        holds=lambda source: {
            "self.fout = [open(filename, 'wb') for filename in filenames]", "self.tensors = [{}]"
        } <= codes(source.definition(WRITER, "GGUFWriter")),
        planted=("        self.tensors = [{}]\n", "        self.tensors = {}\n"),
    ),
    Place(
        ours="row_streams.Shadow.replace", file=WRITER,
        needs="gguf_writer.TensorInfo has shape, dtype, nbytes, tensor",
        holds=lambda source: {"shape", "dtype", "nbytes", "tensor"}
        <= fields(source.definition(WRITER, "TensorInfo")),
        planted=("    tensor: np.ndarray[Any, Any] |", "    array: np.ndarray[Any, Any] |"),
    ),
    Place(
        ours="row_streams.RowStream", file=WRITER,
        needs="write_tensors_to_file() asks a tensor for nbytes and tofile(file) alone",
        holds=lambda source: {
            one for one in codes(source.definition(WRITER, "GGUFWriter.write_tensors_to_file"))
            if one.startswith("ti.tensor.")
        } == {"ti.tensor.nbytes", "ti.tensor.nbytes == ti.nbytes", "ti.tensor.tofile",
              "ti.tensor.tofile(fout)"},
        planted=("ti.tensor.tofile(fout)", "fout.write(ti.tensor.tobytes())"),
    ),
    Place(
        ours="row_streams.RowStream", file=CONSTANTS,
        needs="gguf.GGMLQuantizationType has BF16, F16, F32",
        holds=lambda source: {"BF16", "F16", "F32"}
        <= fields(source.definition(CONSTANTS, "GGMLQuantizationType")),
        planted=("    F32     = 0\n", "    FLOAT32 = 0\n"),
    ),
    Place(
        ours="row_streams._in_file", file=MODEL,
        needs="model_tensors holds LazyTorchTensor.from_local_tensor(data) of safetensors",
        holds=lambda source: "lambda data=data: LazyTorchTensor.from_local_tensor(data)"
        in codes(source.definition(MODEL, "ModelBase.index_tensors")),
        planted=("LazyTorchTensor.from_local_tensor(data)", "LazyTorchTensor.from_file(data)"),
    ),
    Place(
        ours="row_streams._in_file", file=MODEL,
        needs="a tensor in a file has that file's tensor as its one argument, in _args",
        holds=lambda source: any(
            one.startswith("cls(meta=") and "args=(t,)" in one
            for one in codes(source.definition(MODEL, "LazyTorchTensor.from_local_tensor"))
        ) and "self._args = args" in codes(source.definition(LAZY, "LazyBase.__init__")),
        planted=("args=(t,), ", "args=(t, dtype), "),
    ),
    Place(
        ours="row_streams.Stored", file=UTILITY,
        needs="gguf.utility.LocalTensor has dtype, shape, mmap_bytes()",
        holds=lambda source: {"dtype", "shape"}
        <= fields(source.definition(UTILITY, "LocalTensor"))
        and required(source.definition(UTILITY, "LocalTensor.mmap_bytes")) == ["self"],
        planted=("    def mmap_bytes(self)", "    def as_bytes(self)"),
    ),
    Place(
        ours="tokenizer_json.TokenizerReader", file=VOCABULARY,
        needs="gguf.vocab reads tokenizer.json by json.load(file) of a file opened as text",
        holds=lambda source: "import json" in statements(source.tree(VOCABULARY)) and {
            "open(tokenizer_file, encoding='utf-8')", "tokenizer = json.load(f)"
        } <= codes(source.definition(VOCABULARY, "SpecialVocab._try_load_from_tokenizer_json")),
        planted=("with open(tokenizer_file, encoding = 'utf-8') as f:",
                 "with open(tokenizer_file, 'rb') as f:"),
    ),
    Place(
        ours="transformers_stand_in.read_ahead", file=MODEL,
        needs="AutoConfig comes from transformers at import, and gives a dictionary by to_dict()",
        holds=lambda source: "from transformers import AutoConfig"
        in statements(source.tree(MODEL))
        and "AutoConfig.from_pretrained(dir_model, trust_remote_code=False).to_dict()"
        in codes(source.definition(MODEL, "ModelBase.load_hparams")),
        planted=("trust_remote_code=False).to_dict()", "trust_remote_code=False).values"),
    ),
    Place(
        ours="transformers_stand_in.ReadTokenizer", file=MODEL,
        needs="AutoTokenizer comes from transformers when the vocabulary is asked for",
        holds=lambda source: {
            "from transformers import AutoTokenizer",
            "AutoTokenizer.from_pretrained(self.dir_model)",
        } <= codes(source.definition(MODEL, "TextModel.get_vocab_base")),
        planted=("        from transformers import AutoTokenizer\n        tok", "        tok"),
    ),
    Place(
        ours="transformers_stand_in.ReadTokenizer", file=MODEL,
        needs="get_vocab_base() spells an added token by encode and decode of it alone",
        holds=lambda source: "tokenizer.decode(tokenizer.encode(token, add_special_tokens=False))"
        in codes(source.definition(MODEL, "TextModel.get_vocab_base")),
        planted=("tokenizer.encode(token, add_special_tokens=False)", "tokenizer.encode(token)"),
    ),
    Place(
        ours="tokenizer_reader.PROBE", file=MODEL,
        needs="the text by which a pre-tokenizer is known stands in one line, as chktxt",
        holds=lambda source: PROBE.search(source.text(MODEL)) is not None
        and "tokenizer.encode(chktxt)"
        in codes(source.definition(MODEL, "TextModel.get_vocab_base_pre")),
        planted=("        chktxt = '", "        text = '"),
    ),
)  # fmt: skip


@pytest.fixture
def source() -> Source:
    """The pinned converter as it is."""
    return Source(folder=llama_build.vendor_folder())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.needs[:60])
def test_the_pinned_converter_has_what_our_parts_take_the_place_of(
    place: Place, source: Source
) -> None:
    assert place.holds(source), (
        f"llama.cpp's {place.file} no longer has what exporter.engine.conversion.{place.ours} "
        f"relies on: {place.needs}. Read the new converter there and follow it before this pin."
    )


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.needs[:60])
def test_a_converter_that_lost_it_is_noticed(place: Place, source: Source) -> None:
    old, new = place.planted
    text = source.text(place.file)
    assert old in text, f"{place.file} has no {old!r}, so that no change can be planted"
    changed = Source(folder=source.folder, changed={place.file: text.replace(old, new, 1)})
    assert not place.holds(changed)
