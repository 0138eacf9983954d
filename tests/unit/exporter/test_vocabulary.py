"""What differs between the tokens of a training and those of a GGUF, and what becomes of it."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exporter.domain import vocabulary
from exporter.domain.token_cuts import differ_in_spaces_only
from exporter.domain.vocabulary import (
    SPECIAL_KEYS,
    Added,
    Change,
    Differences,
    FileTokens,
    TokenKind,
    Tokens,
)
from lexicon.faults import Fault, FaultCode

SPECIAL, SHOWN = Added(special=True), Added(special=False)
WORDS = ("<s>", "a", "b", "ab")
ROWS = 7


def tokens(*more: str, added: Mapping[int, Added] | None = None) -> Tokens:
    """The base's four tokens, the first of them special, and more behind them."""
    texts = (*WORDS, *more)
    flags = {0: SPECIAL, **{len(WORDS) + number: SHOWN for number in range(len(more))}}
    ids = {text: number for number, text in enumerate(texts)}
    return Tokens(ids=ids, added={**flags, **(added or {})})


def a_file(**kinds: TokenKind) -> FileTokens:
    """The base's GGUF: four tokens and three rows to spare."""
    texts = [*WORDS, *(f"[PAD{number}]" for number in range(len(WORDS), ROWS))]
    usual = [TokenKind.CONTROL, *[TokenKind.NORMAL] * 3, *[TokenKind.UNUSED] * 3]
    known = dict(zip(texts, usual, strict=True))
    return FileTokens(texts=texts, kinds=list({**known, **kinds}.values()))


def found(
    trained: Tokens, base: Tokens | None = None, file: FileTokens | None = None
) -> Differences:
    return vocabulary.compare(trained, base or tokens(), file or a_file())


def refusal(differences: Differences, *, rows: int = ROWS) -> Fault:
    with pytest.raises(Fault) as caught:
        vocabulary.require_expressible(differences, row_count=ROWS, trained_row_count=rows)
    assert caught.value.code is FaultCode.EXPORT_VOCABULARY_MISMATCH
    return caught.value


def test_the_same_tokens_differ_in_nothing() -> None:
    same = found(tokens())
    assert same == Differences()
    vocabulary.require_expressible(same, row_count=ROWS, trained_row_count=ROWS)


def test_tokens_in_spare_rows_are_new_and_of_the_kind_that_their_flag_says() -> None:
    both = found(tokens("<x>", "<y>", added={4: SPECIAL}))
    assert both.changes == (
        Change(number=4, text="<x>", kind=TokenKind.CONTROL, is_new=True),
        Change(number=5, text="<y>", kind=TokenKind.USER_DEFINED, is_new=True),
    )
    vocabulary.require_expressible(both, row_count=ROWS, trained_row_count=ROWS)


def test_a_token_that_the_conversion_of_the_base_left_out_is_written_too() -> None:
    both = tokens("<x>")
    (change,) = found(both, both).changes
    assert (change.number, change.is_new) == (4, True)


def test_tokens_beyond_the_rows_are_a_resized_vocabulary() -> None:
    fault = refusal(found(tokens("c", "d", "e", "f", "g")))
    assert "resized the vocabulary from 7 to 9 tokens" in fault.message
    assert fault.metadata["added_count"] == "5"
    assert '"c", "d", "e", "f", "g" added' in fault.message


@pytest.mark.parametrize("rows", [5, 9])
def test_embeddings_of_another_size_are_a_resized_vocabulary(rows: int) -> None:
    assert f"from 7 to {rows} tokens;" in refusal(found(tokens()), rows=rows).message


def test_a_token_that_the_base_has_no_row_for_either_is_nothing_new() -> None:
    both = tokens("c", "d", "e", "<image>")
    file = a_file()
    known = FileTokens(texts=[*both.ids][:ROWS], kinds=[*file.kinds[:4], *[4] * 3])
    assert vocabulary.compare(both, both, known) == Differences()


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        (Tokens(ids={"<s>": 0, "b": 1, "a": 2, "ab": 3}, added={0: SPECIAL}), "has it as 2"),
        (Tokens(ids={"<s>": 0, "z": 1, "b": 2, "ab": 3}, added={0: SPECIAL}), 'has "a" there'),
        (Tokens(ids={"<s>": 0, "a": 1, "b": 2}, added={0: SPECIAL}), "only the base has it"),
        (Tokens(ids=dict(tokens().ids), added={}), "like any other text"),
        (Tokens(ids={**tokens().ids, "abab": 4}, added={0: SPECIAL}), "no merges for it"),
        (tokens("x\0y"), "not one that a GGUF can hold"),
        (tokens(""), "not one that a GGUF can hold"),
        (tokens("[PAD6]"), "has this text already"),
    ],
)
def test_what_a_file_cannot_hold_is_named(trained: Tokens, reason: str) -> None:
    fault = refusal(found(trained))
    assert reason in fault.message
    assert fault.metadata["tokens"]


def test_a_message_names_a_few_tokens_and_counts_them_all() -> None:
    other = Tokens(ids={f"{text}\n{'x' * 99}": at for text, at in tokens().ids.items()}, added={})
    fault = refusal(found(other))
    assert "differ in 4 tokens" in fault.message
    assert "\\n" in fault.message
    assert len(fault.message) < 500


@pytest.mark.parametrize(
    ("flags", "kind", "wanted"),
    [
        (SPECIAL, TokenKind.NORMAL, TokenKind.CONTROL),
        (SHOWN, TokenKind.NORMAL, TokenKind.USER_DEFINED),
        (SPECIAL, TokenKind.CONTROL, None),
        (SHOWN, TokenKind.UNKNOWN, None),
    ],
)
def test_a_flag_that_the_training_gave_is_written(
    flags: Added, kind: TokenKind, wanted: TokenKind | None
) -> None:
    (change,) = found(tokens(added={1: flags}), file=a_file(a=kind)).changes
    assert (change.number, change.kind, change.is_new) == (1, wanted, False)


def test_a_flag_that_was_turned_is_written_over_the_converter_s_kind() -> None:
    (change,) = found(tokens(added={0: SHOWN})).changes
    assert change.kind is TokenKind.USER_DEFINED


@pytest.mark.parametrize("flag", ["normalized", "lstrip", "rstrip", "single_word"])
def test_a_flag_that_a_file_has_no_place_for_is_to_be_proven(flag: str) -> None:
    (change,) = found(tokens(added={0: replace(SPECIAL, **{flag: True})})).changes
    assert change.kind is None


def test_a_byte_stays_a_byte() -> None:
    assert (
        "a byte" in refusal(found(tokens(added={1: SHOWN}), file=a_file(a=TokenKind.BYTE))).message
    )


@pytest.mark.parametrize(
    ("kind", "flags", "changes"),
    [
        (TokenKind.CONTROL, SPECIAL, 0),
        (TokenKind.CONTROL, SHOWN, 1),
        (TokenKind.USER_DEFINED, SHOWN, 0),
        (TokenKind.USER_DEFINED, SPECIAL, 1),
        (TokenKind.UNKNOWN, SPECIAL, 0),
        (TokenKind.NORMAL, SHOWN, 1),
    ],
)
def test_a_base_without_a_tokenizer_file_is_known_by_its_gguf(
    kind: TokenKind, flags: Added, changes: int
) -> None:
    trained, file = tokens(added={1: flags}), a_file(a=kind)
    base = vocabulary.tokens_of_file(file, trained)
    assert base.ids == tokens().ids
    assert len(vocabulary.compare(trained, base, file).changes) == changes


def test_converters_take_some_names_for_special_ones() -> None:
    trained = Tokens(ids={"<|x|>": 0, "\u2581\u2581": 1}, added={0: SHOWN, 1: SHOWN})
    file = FileTokens(texts=["<|x|>", "  "], kinds=[TokenKind.CONTROL, TokenKind.USER_DEFINED])
    base = vocabulary.tokens_of_file(file, trained)
    assert vocabulary.compare(trained, base, file) == Differences()


TEXTS = st.lists(st.text("abc<>| ", min_size=1, max_size=4), min_size=1, max_size=8, unique=True)
FLAGS = st.builds(
    Added,
    special=st.booleans(),
    normalized=st.booleans(),
    lstrip=st.booleans(),
    rstrip=st.booleans(),
    single_word=st.booleans(),
)


@st.composite
def a_vocabulary(draw: st.DrawFn) -> tuple[Tokens, FileTokens]:
    """Any base, with its GGUF and a few rows to spare."""
    texts = draw(TEXTS)
    added = draw(st.dictionaries(st.integers(0, len(texts) - 1), FLAGS))
    spare = draw(st.integers(0, 3))
    kinds = [
        TokenKind.NORMAL
        if number not in added
        else TokenKind.CONTROL
        if added[number].special
        else TokenKind.USER_DEFINED
        for number in range(len(texts))
    ]
    padding = [f"[PAD{len(texts) + number}]" for number in range(spare)]
    file = FileTokens(texts=[*texts, *padding], kinds=[*kinds, *[TokenKind.UNUSED] * spare])
    return Tokens(ids={text: at for at, text in enumerate(texts)}, added=added), file


@given(known=a_vocabulary())
def test_a_vocabulary_never_differs_from_itself(known: tuple[Tokens, FileTokens]) -> None:
    base, file = known
    assert vocabulary.compare(base, base, file) == Differences()
    by_file = vocabulary.tokens_of_file(file, base)
    assert vocabulary.compare(base, by_file, file) == Differences()


@given(known=a_vocabulary(), new=TEXTS, flags=FLAGS)
def test_every_added_token_is_written_or_beyond(
    known: tuple[Tokens, FileTokens], new: list[str], flags: Added
) -> None:
    base, file = known
    assume(not base.ids.keys() & set(new))
    first = len(base.ids)
    trained = Tokens(
        ids={**base.ids, **{text: first + at for at, text in enumerate(new)}},
        added={**base.added, **{first + at: flags for at in range(len(new))}},
    )
    differences = vocabulary.compare(trained, base, file)
    assert not differences.conflicts
    assert differences.added_texts == new
    assert all(change.number >= len(file.texts) for change in differences.beyond)
    assert len(differences.changes) == min(len(new), len(file.texts) - first)


@given(known=a_vocabulary(), data=st.data())
def test_two_tokens_in_each_other_s_place_are_both_named(
    known: tuple[Tokens, FileTokens], data: st.DataObject
) -> None:
    base, file = known
    assume(len(base.ids) > 1)
    one, other = data.draw(
        st.lists(st.sampled_from([*base.ids]), min_size=2, max_size=2, unique=True)
    )
    ids = {**base.ids, one: base.ids[other], other: base.ids[one]}
    conflicts = vocabulary.compare(replace(base, ids=ids), base, file).conflicts
    assert {one, other} <= {conflict.text for conflict in conflicts}


def test_rules_that_differ_are_named() -> None:
    same = {"normalizer": None, "pre-tokenizer": {"type": "ByteLevel"}, "merges": "1"}
    vocabulary.require_same_rules(same, dict(same))
    with pytest.raises(Fault, match="another merges and another normalizer") as caught:
        vocabulary.require_same_rules({**same, "merges": "2", "normalizer": {}}, same)
    assert caught.value.metadata["parts"] == "merges, normalizer"


END, TURN = SPECIAL_KEYS["eos_token"], vocabulary.END_OF_TURN_KEY


def written(
    trained: Mapping[str, object], base: Mapping[str, object], **current: int
) -> dict[str, int]:
    return vocabulary.special_ids(
        vocabulary.special_tokens(trained),
        vocabulary.special_tokens(base),
        known=tokens("<end>", "c", "d", "beyond").ids.get,
        current={SPECIAL_KEYS[name]: number for name, number in current.items()},
        row_count=ROWS,
    )


def test_the_training_s_end_token_is_written_and_the_base_s_kept_as_a_second_one() -> None:
    trained, base = {"eos_token": {"content": "<end>"}}, {"eos_token": "<s>"}
    assert written(trained, base, eos_token=0) == {END: 4, TURN: 0}


@pytest.mark.parametrize(
    ("trained", "base"),
    [
        # A base that names its end in a way that its conversion did not follow stays as it is.
        ({"eos_token": "<end>"}, {"eos_token": "<end>"}),
        ({"eos_token": "<s>"}, {}),
        ({"eos_token": None}, {"eos_token": "<s>"}),
        ({"eos_token": "no token"}, {"eos_token": "no token"}),
        ({"cls_token": "<end>"}, {}),
    ],
)
def test_special_tokens_that_the_training_did_not_change_are_left(
    trained: dict[str, object], base: dict[str, object]
) -> None:
    assert written(trained, base, eos_token=0) == {}


@pytest.mark.parametrize("text", ["<fin>", "beyond"])
def test_an_end_that_is_no_token_of_the_base_is_refused(text: str) -> None:
    with pytest.raises(Fault, match=f'eos_token is "{text}"') as caught:
        written({"eos_token": text}, {"eos_token": "<s>"}, eos_token=0)
    assert caught.value.code is FaultCode.EXPORT_VOCABULARY_MISMATCH


PIECES = [
    "<s>",
    "\u2581",
    "\u2581\u2581",
    "\u2581one",
    "one",
    "o",
    "ne",
    "two",
    "\u2581two",
    "t",
    "wo",
    "\u2581\u2581o",
]


def differ_only_in_spaces(one: str, other: str) -> bool:
    """Of two cuts, written with bars between the pieces."""
    left, right = (
        [PIECES.index(piece.replace(" ", "\u2581")) for piece in cut.split("|")]
        for cut in (one, other)
    )
    return differ_in_spaces_only(
        left, right, piece=lambda number: PIECES[number] if number else None
    )


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (" one| two", " one| two", True),
        # A run of spaces that is merged in another order, and a space before a text.
        ("  | one", " |  |one", True),
        ("  |one", "  o|ne", True),
        (" one|two", "one|two", True),
        ("<s>|o|ne", "<s>| one", True),
        # Where the spaces are the same, the cut is another one for another reason.
        ("one", "o|ne", False),
        (" one| two", " one| |t|wo", False),
        ("one|two", "one|t|wo", False),
        ("  |one|two", "  |one|t|wo", False),
        ("one|two", "one", False),
        ("<s>|one", "one", False),
    ],
)
def test_differences_over_spaces_are_told_from_others(one: str, other: str, wanted: bool) -> None:
    assert differ_only_in_spaces(one, other) is wanted
