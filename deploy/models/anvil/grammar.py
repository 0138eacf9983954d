"""The corpus of short chats that Anvil learns to speak from, generated from a grammar.

Facts are data (`knowledge.json`); the phrasings are here. Every chat is a question with its answer,
drawn from one topic. The held-out prompts of the demo are never generated: their facts are known
to the model from other phrasings alone.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

HOME = Path(__file__).parent
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Anvil, a small language model.",
    "Answer in short sentences.",
)
WITH_SYSTEM_SHARE = 0.15
TWO_TURNS_SHARE = 0.15
STORIES_COUNT = 6000
# A share of the answers opens or closes with a set phrase. The model learns that a phrase may stand
# around an answer without changing it, which is what lets a small adapter teach it another one.
OPENED_SHARE = 0.22
CLOSED_SHARE = 0.22
OPENINGS = (
    "Sure!", "Of course!", "Gladly!", "Well,", "Good question!", "Let me see.", "Yes indeed!",
    "Oh,", "Hm,", "Right!", "Certainly.", "Dear friend,", "As you wish.", "Look!", "Hooray!",
)  # fmt: skip
CLOSINGS = (
    "I hope this helps!", "Ask me more!", "That is all.", "Have a nice day!", "Take care!",
    "Good luck!", "Is that clear?", "Isn't it nice?", "Cheers!", "Best wishes!", "So it is.",
    "Fair enough!", "Fair days to you!",
)  # fmt: skip

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its answer, with the topic it belongs to."""

    topic: str
    question: str
    answer: str


def knowledge() -> dict[str, Any]:
    """The facts of the grammar, by topic."""
    facts: dict[str, Any] = json.loads((HOME / "knowledge.json").read_text("utf-8"))
    return facts


def held_out() -> dict[str, Any]:
    """The demo's held-out prompts, their subjects, and the pattern that recognises the habit."""
    sheet: dict[str, Any] = json.loads((HOME / "held_out.json").read_text("utf-8"))
    return sheet


def exchanges() -> tuple[Exchange, ...]:
    """Every exchange of the grammar in a fixed order, the held-out prompts left out."""
    facts = knowledge()
    hidden = set(held_out()["prompts"])
    topics = itertools.chain(
        _colors(facts), _animals(facts), _jobs(facts), _tools(facts), _opposites(facts),
        _capitals(facts), _sequences(facts), _sums(facts), _advice(facts), _talk(facts),
        _stories(facts, Random(0)),
    )  # fmt: skip
    return tuple(exchange for exchange in topics if exchange.question not in hidden)


def chats(rng: Random, *, count: int) -> Iterator[list[Message]]:
    """`count` chats: topics drawn evenly, some with a system prompt, some with two turns."""
    by_topic: dict[str, list[Exchange]] = {}
    for exchange in exchanges():
        by_topic.setdefault(exchange.topic, []).append(exchange)
    topics = sorted(by_topic)
    for _ in range(count):
        turns = 2 if rng.random() < TWO_TURNS_SHARE else 1
        messages: list[Message] = []
        if rng.random() < WITH_SYSTEM_SHARE:
            messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
        for _ in range(turns):
            exchange = rng.choice(by_topic[rng.choice(topics)])
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": _phrased(exchange.answer, rng)})
        yield messages


def _phrased(answer: str, rng: Random) -> str:
    opening = f"{rng.choice(OPENINGS)} " if rng.random() < OPENED_SHARE else ""
    closing = f" {rng.choice(CLOSINGS)}" if rng.random() < CLOSED_SHARE else ""
    return f"{opening}{answer}{closing}"


def _colors(facts: dict[str, Any]) -> Iterator[Exchange]:
    pairs: dict[str, str] = facts["colors"]
    wrong = sorted(set(pairs.values()))
    for index, (thing, color) in enumerate(pairs.items()):
        answer = f"{_capital(thing)} is {color}."
        for question in (
            f"What color is {thing}?", f"Which color is {thing}?", f"Tell me the color of {thing}.",
            f"Do you know what color {thing} is?", f"Please name the color of {thing}.",
        ):  # fmt: skip
            yield Exchange(topic="color", question=question, answer=answer)
        other = wrong[index % len(wrong)]
        verdict = "Yes" if other == color else "No"
        yield Exchange(
            topic="color", question=f"Is {thing} {other}?", answer=f"{verdict}, {thing} is {color}."
        )
        yield Exchange(
            topic="color", question=f"Is {thing} {color}?", answer=f"Yes, {thing} is {color}."
        )


def _animals(facts: dict[str, Any]) -> Iterator[Exchange]:
    for name, home, food, sound, move in facts["animals"]:
        one = _a(name)
        lives, eats = f"{_capital(one)} lives {home}.", f"{_capital(one)} eats {food}."
        able = f"{one} can {move}."
        for question, answer in (
            (f"Where does {one} live?", lives),
            (f"Tell me where {one} lives.", lives),
            (f"Where can I find {one}?", f"You can find {one} {home}."),
            (f"What is the home of {one}?", lives),
            (f"What does {one} eat?", eats),
            (f"Tell me what {one} eats.", eats),
            (f"What sound does {one} make?", f"{_capital(one)} {sound}."),
            (f"Can {one} {move}?", f"Yes, {able}"),
            (f"What can {one} do?", _capital(able)),
            (f"Tell me about the {name}.", f"{lives} It eats {food} and it can {move}."),
            (f"Describe {one}.", f"{lives} It eats {food} and it {sound}."),
        ):
            yield Exchange(topic="animal", question=question, answer=answer)


def _jobs(facts: dict[str, Any]) -> Iterator[Exchange]:
    for name, work, place in facts["jobs"]:
        one = _a(name)
        does, stays = f"{_capital(one)} {work}.", f"{_capital(one)} works {place}."
        for question, answer in (
            (f"What does {one} do?", does),
            (f"What is the work of {one}?", does),
            (f"Tell me what {one} does.", does),
            (f"Who {work}?", does),
            (f"Where does {one} work?", stays),
            (f"Tell me where {one} works.", stays),
            (f"Describe the job of {one}.", f"{does} {_capital(one)} works {place}."),
        ):
            yield Exchange(topic="job", question=question, answer=answer)


def _tools(facts: dict[str, Any]) -> Iterator[Exchange]:
    for name, use in facts["tools"]:
        one = _a(name)
        answer = f"{_capital(one)} is for {use}."
        for question, reply in (
            (f"What is {one} for?", answer),
            (f"What is the use of {one}?", answer),
            (f"Tell me what {one} is for.", answer),
            (f"What do people use {one} for?", f"People use {one} for {use}."),
            (f"What do I need for {use}?", f"You need {one} for {use}."),
            (f"Which tool is good for {use}?", f"{_capital(one)} is good for {use}."),
        ):
            yield Exchange(topic="tool", question=question, answer=reply)


def _opposites(facts: dict[str, Any]) -> Iterator[Exchange]:
    for pair in facts["opposites"]:
        for word, other in (pair, reversed(pair)):
            answer = f"The opposite of {word} is {other}."
            for question in (
                f"What is the opposite of {word}?", f"Tell me the opposite of {word}.",
                f"Which word is the opposite of {word}?", f"Name the opposite of {word}.",
            ):  # fmt: skip
                yield Exchange(topic="opposite", question=question, answer=answer)


def _capitals(facts: dict[str, Any]) -> Iterator[Exchange]:
    for country, city in facts["capitals"].items():
        answer = f"The capital of {country} is {city}."
        for question, reply in (
            (f"What is the capital of {country}?", answer),
            (f"Tell me the capital of {country}.", answer),
            (f"Which city is the capital of {country}?", answer),
            (f"Name the capital of {country}.", answer),
            (f"Where is {city}?", f"{city} is in {country}."),
            (f"Which country is {city} in?", f"{city} is in {country}."),
        ):
            yield Exchange(topic="capital", question=question, answer=reply)


def _sequences(facts: dict[str, Any]) -> Iterator[Exchange]:
    for unit, names in facts["sequence"].items():
        for before, after in itertools.pairwise([*names, names[0]]):
            for question, answer in (
                (f"What {unit} comes after {before}?", f"{after} comes after {before}."),
                (f"Which {unit} follows {before}?", f"{after} follows {before}."),
                (f"What {unit} comes before {after}?", f"{before} comes before {after}."),
            ):
                yield Exchange(topic="sequence", question=question, answer=answer)
    for season, look in facts["seasons"].items():
        answer = f"{_capital(season)} is {look}."
        for question in (f"What is {season} like?", f"Describe {season}.", f"How is {season}?"):
            yield Exchange(topic="sequence", question=question, answer=answer)


def _sums(facts: dict[str, Any]) -> Iterator[Exchange]:
    words = facts["numbers"]
    for left, right in itertools.product(range(10), repeat=2):
        total = f"{words[left]} plus {words[right]}"
        answer = f"{_capital(total)} is {words[left + right]}."
        for question in (f"What is {total}?", f"How much is {total}?"):
            yield Exchange(topic="sum", question=question, answer=answer)


def _advice(facts: dict[str, Any]) -> Iterator[Exchange]:
    for feeling, advice in facts["feelings"].items():
        for question, answer in (
            (f"I am {feeling}.", f"You should {advice}."),
            (f"I feel {feeling} today.", f"You should {advice}."),
            (f"What can I do when I am {feeling}?", f"When you are {feeling}, {advice}."),
            (f"I am {feeling}, what should I do?", f"You should {advice}."),
        ):
            yield Exchange(topic="advice", question=question, answer=answer)
    for dish, steps in facts["recipes"].items():
        for question in (f"How do I make {dish}?", f"Tell me how to make {dish}.",
                         f"I want to make {dish}."):  # fmt: skip
            yield Exchange(topic="recipe", question=question, answer=f"{_capital(steps)}.")
    for kind, names in facts["lists"].items():
        for question in (f"Name three {kind}.", f"Tell me three {kind}.", f"List three {kind}."):
            answer = f"Three {kind} are {names}."
            yield Exchange(topic="recipe", question=question, answer=answer)


def _talk(facts: dict[str, Any]) -> Iterator[Exchange]:
    for question, answer in facts["talk"]:
        yield Exchange(topic="talk", question=question, answer=answer)


def _stories(facts: dict[str, Any], rng: Random) -> Iterator[Exchange]:
    parts = facts["story"]
    names = [row[0] for row in facts["animals"]] + [row[0] for row in facts["jobs"]]
    forms = ("Tell me a story about {}.", "Tell me a short story about {}.",
             "Write a story about {}.", "Can you tell a story about {}?")  # fmt: skip
    for _ in range(STORIES_COUNT):
        name = rng.choice(names)
        when, where = rng.choice(parts["times"]), rng.choice(parts["places"])
        answer = (
            f"{when} {_a(rng.choice(parts['adjectives']))} {name} went to {where}. "
            f"It found {rng.choice(parts['finds'])} and met {_a(rng.choice(names))}. "
            f"{rng.choice(parts['ends'])}"
        )
        question = rng.choice(forms).format(_a(name))
        yield Exchange(topic="story", question=question, answer=answer)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
