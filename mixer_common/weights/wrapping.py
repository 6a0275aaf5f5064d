"""What lies around the weights in a file: prefixes, keys of a training's state, averaged weights beside the others."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mixer_common.errors import UserError
from mixer_common.weights.formats import FLAX_VARIANTS, FORMATS, NUMBER, Format
from mixer_common.weights.reading import SEPARATOR

# Optimizers and gradients hold arrays under the names of the weights, and so look like weights.
_MOMENTS = {"opt_state", "optimizer_state", "opt_states", "mu", "nu", "trace", "momentum", "grads", "param_states"}
_SEPARATORS = "./\\"
_AVERAGED = re.compile(r"(^|[./_\\])ema([./_\\]|$)", re.IGNORECASE)


class WrappedWeights(NamedTuple):
    """A Mixer's weights among named arrays."""

    format: str  # a key of FORMATS
    table: Format
    prefix: str  # before every name
    num_blocks: int
    matches: int  # names that the format has

    @property
    def averaged(self) -> bool:
        """Whether they are an exponential moving average."""
        return bool(_AVERAGED.search(self.prefix))

    @property
    def title(self) -> str:
        kind = "averaged weights" if self.averaged else "weights"
        return f"{kind} under {self.prefix.rstrip(_SEPARATORS)}" if self.prefix else f"{kind} without a prefix"


def find_weights(names: Sequence[str]) -> list[WrappedWeights]:
    """Every set of a Mixer's weights among the names, of the one format that most names fit; in the order of the names.

    Before the names of one set stands any prefix that ends in a dot or a slash: `module.`, `_orig_mod.`, `model.`,
    `state_dict/`, `params/params/`, and what else wraps a model. An optimizer's moments are left out.
    """
    found: dict[str, WrappedWeights] = {}
    for format, table in (*FORMATS.items(), *(("npz", variant) for variant in FLAX_VARIANTS)):
        for prefix in _prefixes(table, names):
            inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
            num_blocks = _count_blocks(table, inner)
            if not num_blocks or is_moment(prefix):
                continue
            matches = len(inner & table.file_names(num_blocks))
            if matches > (found[prefix].matches if prefix in found else 0):
                found[prefix] = WrappedWeights(format, table, prefix, num_blocks, matches)
    if not found:
        return []
    best = max(found.values(), key=lambda wrapped: wrapped.matches)
    return [each for each in found.values() if each.table is best.table and 2 * each.matches > best.matches]


def is_moment(name: str) -> bool:
    """Whether an array of this name, or with this prefix, is an optimizer's or a gradient."""
    return bool(_MOMENTS & set(SEPARATOR.split(name)))


def is_counter(name: str) -> bool:
    """Whether an array of this name is the number in which torch's AveragedModel counts its steps."""
    return SEPARATOR.split(name)[-1] == "n_averaged"


def choose_weights(found: Sequence[WrappedWeights], prefer: str | None, origin: str) -> tuple[WrappedWeights, str]:
    """The one of several sets to read, and a sentence for people where there was a choice, else "".

    prefer: "ema" or None takes averaged weights where there are any, as timm does; "model" takes those as trained; the
    beginning of the names takes what it stands before. Raises UserError where the preferred ones are not there.
    """
    averaged = [each for each in found if each.averaged]
    trained = [each for each in found if not each.averaged]
    if prefer in (None, "ema", "model"):
        wanted = trained if prefer == "model" else averaged
        if not wanted and prefer:
            kind = "weights as trained" if prefer == "model" else "averaged weights"
            raise UserError(
                f"{origin} holds no {kind}, only {' and '.join(each.title for each in found)}: leave --prefer out."
            )
        chosen = (wanted or trained or averaged)[0]
    else:
        fitting = [each for each in found if each.prefix.rstrip(_SEPARATORS) == str(prefer).rstrip(_SEPARATORS)]
        if not fitting:
            raise UserError(
                f"{origin} holds no weights under {prefer!r}: --prefer takes ema, model, or one of "
                f"{', '.join(repr(each.prefix) for each in found)}."
            )
        chosen = fitting[0]
    others = [each for each in found if each is not chosen]
    if not others:
        return chosen, ""
    ways = []
    for each in others:
        kinds = trained if not each.averaged else averaged
        option = ("ema" if each.averaged else "model") if kinds[0] is each and each.averaged != chosen.averaged else ""
        ways.append(f"{each.title} (--prefer {option or each.prefix.rstrip(_SEPARATORS)})")
    return chosen, f"the {chosen.title}; the file also holds {' and '.join(ways)}"


def _prefixes(table: Format, names: Iterable[str]) -> list[str]:
    """What stands before the names of a format's token mixing, each once."""
    patterns = [
        _pattern(template, r"(?P<prefix>|.*[./\\])")
        for layer, template in table.names.items()
        if "token_mixing" in layer
    ]
    return list(dict.fromkeys(m["prefix"] for name in names for p in patterns if (m := p.fullmatch(name))))


def _pattern(template: str, prefix: str = "") -> re.Pattern[str]:
    """The names that a template of a format can make; the group `number` is the block's, or that of blocks."""
    before, _, _, after = NUMBER.split(template)
    before, after = (re.escape(part).replace(r"\{leaf\}", r"\w+?") for part in (before, after))
    return re.compile(rf"{prefix}{before}(?P<number>\d{{1,9}}){after}")


def _count_blocks(table: Format, names: set[str]) -> int:
    """The highest number of a block + 1, so that a lost block is missed; 0 where nothing mixes tokens."""
    numbers = {
        layer: _numbers(template, names) for layer, template in table.names.items() if layer.startswith("blocks.")
    }
    if not any(blocks for layer, blocks in numbers.items() if "token_mixing" in layer):
        return 0
    counts = [block + 1 for blocks in numbers.values() for block in blocks]
    # The head's number, if it has one, tells how many blocks there were, even if the last is lost.
    counts += _numbers(table.names["head"], names)
    # More blocks than arrays is no lost block but a stray name.
    return max((count for count in counts if count <= len(names)), default=0)


def _numbers(template: str, names: set[str]) -> list[int]:
    """The number of the block, or of blocks, in each name that the template of a format can make."""
    number = NUMBER.search(template)
    if number is None:
        return []
    pattern, offset = _pattern(template), int(number[2] or 0)
    return [int(match["number"]) - offset for name in names if (match := pattern.fullmatch(name))]
