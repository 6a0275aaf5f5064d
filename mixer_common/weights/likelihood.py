"""The likeliest of several mappings that fit a file's shapes: what its names and its order tell."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mixer_common.config.model import ModelConfig
from mixer_common.weights.patterns import Source
from mixer_common.weights.reading import SEPARATOR

# Words that tell the roles of modules where their shapes do not.
_WORDS = {
    "token": re.compile(r"(?i)tok|patch|spatial|seq"),
    "channel": re.compile(r"(?i)chan|feat"),
    "first": re.compile(r"(?i)pre|first|before|up|expand|in(?![a-z])|[^a-z]a(?![a-z])"),
    "second": re.compile(r"(?i)post|second|after|down|reduce|out|[^a-z]b(?![a-z])"),
    "stem": re.compile(r"(?i)stem|patch|emb"),
    "head": re.compile(r"(?i)head|clas|clf|logit|fc"),
}
ROLES = (
    "token_norm",
    "token_mixing.fc1",
    "token_mixing.fc2",
    "channel_norm",
    "channel_mixing.fc1",
    "channel_mixing.fc2",
)


@dataclass(frozen=True)
class Module:
    """A matrix with its bias, or a norm, in a file."""

    path: str
    weight: str  # the name of its matrix, or of a norm's scale
    shape: tuple[int, ...]  # of the weight
    bias: str | None
    bias_size: int | None
    place: int  # in the file

    @property
    def is_norm(self) -> bool:
        return len(self.shape) == 1


class Structure(NamedTuple):
    """A model found in named arrays."""

    config: ModelConfig
    names: dict[str, Source]
    block_is_told: bool


def likeliest(found: list[Structure], modules: Sequence[Module], ordered: bool) -> list[Structure]:
    """Those that the words in the names favour, then those whose norms lie beside their MLPs, then those whose order
    is that of the file."""
    place = {module.weight: module.place for module in modules}
    for score in (_words, _shared_parents, *([lambda s: _order(s, place)] if ordered else []), _numbers):
        if len(found) > 1:
            best = max(map(score, found))
            found = [structure for structure in found if score(structure) == best]
    return found


def _words(structure: Structure) -> int:
    """How many roles the words in the names confirm, less those that they deny."""
    names, score = structure.names, 0
    pairs = [("stem.weight", "stem", "head"), ("head.weight", "head", "stem")]
    for role in ROLES:
        mine, other = ("token", "channel") if role.startswith("token") else ("channel", "token")
        pairs.append((f"blocks.0.{role}.weight", mine, other))
        if role.endswith("norm"):
            first, second = ("first", "second") if role == "token_norm" else ("second", "first")
        else:
            first, second = ("first", "second") if role.endswith("fc1") else ("second", "first")
        pairs.append((f"blocks.0.{role}.weight", first, second))
    for name, mine, other in pairs:
        if name not in names:  # a file without a head
            continue
        words = names[name].name
        if mine in ("first", "second"):
            words = " " + SEPARATOR.split(words)[-2:][0]  # the module, of which the last part is an array
        elif mine in ("token", "channel"):
            words = re.sub(r"^.*?\d", "", words)
        score += bool(_WORDS[mine].search(words)) - bool(_WORDS[other].search(words))
    linear = names["blocks.0.channel_mixing.fc1.weight"]
    leaf = SEPARATOR.split(linear.name)[-1]
    if leaf in ("kernel", "weight"):
        score += (leaf == "kernel") == ("i o" in linear.pattern)
    return score


def _shared_parents(structure: Structure) -> int:
    """How long the beginnings are that each norm shares with the MLP after it."""
    names = structure.names

    def shared(a: str, b: str) -> int:
        parts = [SEPARATOR.split(names[f"blocks.0.{role}.weight"].name) for role in (a, b)]
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False)))

    return sum(
        shared(f"{mixer}_norm", f"{mixer}_mixing.{fc}") for mixer in ("token", "channel") for fc in ("fc1", "fc2")
    )


def _order(structure: Structure, place: Mapping[str, int]) -> int:
    """How many of the pairs that are built one after the other lie so in the file."""
    places = {role: place[structure.names[f"blocks.0.{role}.weight"].name] for role in ROLES}
    norms, matrices = ([role for role in ROLES if role.endswith("norm") == is_norm] for is_norm in (True, False))
    pairs = [*itertools.combinations(norms, 2), *itertools.combinations(matrices, 2)]
    head = structure.names.get("head.weight")
    ends = head is None or place[structure.names["stem.weight"].name] < place[head.name]
    return sum(places[a] < places[b] for a, b in pairs) + ends


def _numbers(structure: Structure) -> int:
    """How many pairs have names that differ in a number alone, the smaller first."""
    pairs = [(ROLES[0], ROLES[3]), (ROLES[1], ROLES[2]), (ROLES[4], ROLES[5]), (ROLES[1], ROLES[4])]
    score = 0
    for pair in pairs:
        a, b = (structure.names[f"blocks.0.{role}.weight"].name for role in pair)
        if re.sub(r"\d+", "#", a) == re.sub(r"\d+", "#", b):
            numbers = [[int(number) for number in re.findall(r"\d+", name)] for name in (a, b)]
            score += (numbers[0] < numbers[1]) - (numbers[0] > numbers[1])
    return score
