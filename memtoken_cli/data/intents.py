"""Seeded synthetic intents in English: 20 classes, templates with slots. Our own writing, made for tests."""

from __future__ import annotations

import random
import string

from memtoken_cli.data.shots import Query, Shot, Shots

SLOTS = {
    "city": ("Lisbon", "Osaka", "Nairobi", "Quito", "Tallinn", "Perth", "Halifax", "Bergen"),
    "day": ("today", "tomorrow", "on Monday", "on Friday", "this weekend", "next week"),
    "time": ("at six", "at noon", "at half past seven", "in an hour", "before dawn", "at ten tonight"),
    "person": ("Maria", "my brother", "the landlord", "Doctor Osei", "Ines", "my boss", "the school"),
    "dish": ("lentil soup", "pancakes", "fried rice", "a cheese omelette", "apple pie", "ramen"),
    "song": ("some jazz", "the new single", "a lullaby", "my running playlist", "old blues"),
    "thing": ("umbrella", "keys", "passport", "blue jacket", "charger", "bicycle"),
    "amount": ("twenty euros", "fifty dollars", "a hundred pounds", "my half of the rent"),
    "room": ("kitchen", "hallway", "bedroom", "garage", "porch"),
    "topic": ("the election", "volcanoes", "the football results", "bees", "space travel"),
}

TEMPLATES = {
    "weather": (
        "will it rain in {city} {day}",
        "how cold is it in {city} {day}",
        "do I need the {thing} {day}",
    ),
    "alarm": ("wake me up {time}", "set an alarm {time} {day}", "make sure I am awake {time}"),
    "call": ("ring {person}", "give {person} a call {time}", "phone {person} {day}"),
    "message": (
        "text {person} that I am late",
        "write {person} a short message",
        "tell {person} I will be back {time}",
    ),
    "recipe": ("how do I make {dish}", "teach me to cook {dish}", "what goes into {dish}"),
    "music": ("play {song}", "put on {song} in the {room}", "I want to hear {song}"),
    "flight": ("book a flight to {city}", "I need to fly to {city} {day}", "find a plane ticket for {city}"),
    "hotel": (
        "find a room for the night in {city}",
        "reserve a hotel in {city} {day}",
        "where can I sleep in {city}",
    ),
    "transfer": ("send {amount} to {person}", "pay {person} {amount}", "move {amount} to savings"),
    "balance": ("how much money is left", "do I have {amount} in the account", "show my balance {day}"),
    "lights": ("switch on the light in the {room}", "dim the {room}", "it is too dark in the {room}"),
    "heating": ("make the {room} warmer", "turn the heating down in the {room}", "the {room} is freezing"),
    "lost": ("where did I leave my {thing}", "I cannot find the {thing}", "help me look for my {thing}"),
    "shopping": (
        "add a {thing} to the shopping list",
        "we are out of milk for {dish}",
        "buy what {dish} needs",
    ),
    "calendar": (
        "what is planned {day}",
        "put lunch with {person} in the calendar",
        "am I free {day} {time}",
    ),
    "reminder": ("remind me to take the {thing}", "do not let me forget {person} {day}", "nudge me {time}"),
    "news": ("what is new about {topic}", "read me the headlines on {topic}", "any news of {topic} {day}"),
    "directions": ("how do I get to {city}", "the fastest way to {city}", "how far is {city} from here"),
    "translate": (
        "how do they say good morning in {city}",
        "translate thank you for {person}",
        "say {dish} in French",
    ),
    "joke": ("make me laugh", "tell {person} a joke about {topic}", "something funny about {topic}"),
}
CLASSES = tuple(TEMPLATES)


def sentence(label: str, rng: random.Random) -> str:
    """One thing to say that means `label`."""
    template = rng.choice(TEMPLATES[label])
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return template.format(**{name: rng.choice(SLOTS[name]) for name in fields})


def intents(
    shots: int, queries: int, seed: int = 0, classes: int = len(CLASSES)
) -> tuple[Shots, list[Query]]:
    """`shots` examples and `queries` to ask, the labels of both in turn: the first `classes` of CLASSES."""
    rng = random.Random(seed)
    names = CLASSES[:classes]

    def turn(count: int) -> list[str]:
        order: list[str] = []
        while len(order) < count:
            order += rng.sample(names, len(names))
        return order[:count]

    items = [Shot(sentence(label, rng), label, i + 1) for i, label in enumerate(turn(shots))]
    asked = [Query(sentence(label, rng), label, i + 1) for i, label in enumerate(turn(queries))]
    return Shots(items, "pairs", f"<intents {seed}>", ""), asked
