"""One name for one thing: retired words of `docs/glossary.md` stay out of product code."""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.tidy import tree
from tests.tidy.test_files import tracked_files

GLOSSARY = tree.ROOT / "docs" / "glossary.md"
SUFFIXES = frozenset({".py", ".sql", ".h", ".cc", ".toml", ".yml", ".conf"})
# Migrations that were shipped are compared with what was applied, comments included.
LEFT_OUT = ("/migrations/", "libs/tunesmith/api/", "deploy/models/")
# Python's name for a file's position, a text that models read, a key of stored checkpoints, and an
# ordinary word for a substitute.
ALLOWED = re.compile(r'\b\w+\.tell\(\)|Tells the weather|"course"|stand[-_]ins?')
# Rooms in which a word is still to be replaced; an entry without a hit is refused.
NOT_YET = {
    "stand": ("libs/corpus/", "services/exporter/", "services/scheduler/", "services/trainer/"),
    "standing": ("services/trainer/",),
    "rot": ("services/exporter/",),
    "rotten": ("libs/objects/", "services/exporter/"),
}


def test_retired_words_stay_out_of_product_code() -> None:
    """docs/glossary.md: the second table says which term to use instead."""
    retired = retired_words(GLOSSARY.read_text("utf-8"))
    found = [
        f"{place}: {word} -> {retired[word]}"
        for place, word in hits(retired)
        if not place.startswith(NOT_YET.get(word, ()))
    ]
    assert not found, "\n".join(found)


def test_every_exception_for_a_room_is_needed() -> None:
    """When a room is done, its entry in NOT_YET goes."""
    found = hits(NOT_YET)
    unused = [
        f"{word} in {room}"
        for word, rooms in NOT_YET.items()
        for room in rooms
        if not any(place.startswith(room) and hit == word for place, hit in found)
    ]
    assert not unused, "\n".join(unused)


def test_no_file_has_a_retired_name() -> None:
    """A module is found by the term that the glossary has for it."""
    retired = {word.lower() for word in retired_words(GLOSSARY.read_text("utf-8"))}
    found = [
        tree.shown(path)
        for path in product_files()
        if retired & set(re.split(r"[_.]", ALLOWED.sub("", path.name.lower())))
    ]
    assert not found, "\n".join(found)


def test_terms_are_unique_and_in_alphabetical_order() -> None:
    """One line a term, so that a reader finds it, or finds that it is missing."""
    terms = GLOSSARY.read_text("utf-8").partition("## Retired words")[0]
    names = [
        line[2:].partition(" |")[0].lower()
        for line in terms.splitlines()
        if line.startswith("| ") and not line.startswith("| term")
    ]
    assert names == sorted(set(names))


def test_every_term_of_the_glossary_lives_where_it_says() -> None:
    """Paths are those of the repository, from its root or from `services` and `libs`."""
    terms = GLOSSARY.read_text("utf-8").partition("## Retired words")[0]
    roots = [tree.ROOT, tree.ROOT / "services", tree.ROOT / "libs"]
    missing = []
    for line in terms.splitlines():
        if not line.startswith("| ") or line.startswith("| term"):
            continue
        places = re.findall(r"`([^`]+)`", line.rsplit("|", 2)[1])
        folder = ""
        for place in places:
            # A bare file name lies beside the place before it.
            full = place if "/" in place or not folder else f"{folder}/{place}"
            folder = full.rpartition("/")[0]
            if not any((root / full).exists() for root in roots):
                missing.append(full)
        assert places, line
    assert not missing, "\n".join(missing)


def hits(words: Iterable[str]) -> list[tuple[str, str]]:
    """File and line of each of these whole words in product code, with the word."""
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b")
    return [
        (f"{tree.shown(path)}:{number}", match.group())
        for path in product_files()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        for match in pattern.finditer(ALLOWED.sub("", line))
    ]


def product_files() -> list[Path]:
    """What is written for the product, in the languages that it is written in."""
    return [
        path
        for path in tracked_files()
        if tree.shown(path).startswith(tree.PRODUCT_FOLDERS)
        and path.suffix in SUFFIXES
        and not any(part in tree.shown(path) for part in LEFT_OUT)
    ]


def retired_words(text: str) -> dict[str, str]:
    """The second table of the glossary: each retired word with the term to use."""
    rows = text.partition("## Retired words")[2].splitlines()
    found = {}
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) == 2 and cells[0] not in ("retired", "---"):
            found.update({word.strip(): cells[1] for word in cells[0].split(",")})
    assert found
    return found
