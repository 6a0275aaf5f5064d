"""Recognition of a Mixer whose names no table knows, by the shapes and the order of its arrays.

A module is what stands before the last separator of a name; it holds a matrix and perhaps a bias, or the one or two
vectors of a norm. The number that repeats the same shapes is that of the block. Every assignment of the modules to the
roles in a block is tried against the shapes. Where several fit, words in the names decide, then the parent that a norm
shares with its MLP, then the order, if the file keeps the one in which the model was built.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mixer_common.config.model import ModelConfig, squarest_image, weight_shapes
from mixer_common.errors import UserError
from mixer_common.weights.likelihood import ROLES, Module, Structure, likeliest
from mixer_common.weights.patterns import Source, axes, canonical_pattern, file_shape, template, template_shapes
from mixer_common.weights.reading import SEPARATOR

Shapes = Mapping[str, tuple[int, ...]]
_BIASES = re.compile(r"(?i)(bias|beta|b|shift|offset)\d*$")
_CLASS_TOKEN = re.compile(r"(?i)(cls|class)_?(token|tok|embed)")


def recognise_structure(shapes: Shapes, origin: str, block: str | None, given: Mapping[str, Source]) -> Structure:
    """The model in arrays of these shapes, in the file's order.

    block: the block that the user states. given: names and layouts that the user states; see patterns.read_names.
    Raises UserError where there is no Mixer, a class token, or more than one mapping.
    """
    if stated := _stated_structure(shapes, block, given):
        return stated
    tokens = [name for name, shape in shapes.items() if _is_class_token(name, shape)]
    found = _structures({name: shape for name, shape in shapes.items() if name not in tokens}, block, given)
    if not found:
        raise NoStructure
    if tokens:
        raise UserError(
            f"{origin} holds {tokens[0]} of shape {shapes[tokens[0]]}, a class token, which no Mixer has here: a Mixer "
            "averages its tokens; name the weights of one that does."
        )
    told = [structure for structure in found if structure.config.block == found[0].config.block]
    if len(told) > 1:
        raise AmbiguousStructure(
            f"{origin} can be read in {len(told)} ways that its shapes and names do not tell apart: "
            f"{_difference(told[0], told[1])}; state the right one in a TOML file, --names, with lines such as "
            f"{_toml_line(told[0], told[1])}.",
            told,
        )
    return found[0]._replace(block_is_told=block is not None or len(found) == 1)


def _stated_structure(shapes: Shapes, block: str | None, given: Mapping[str, Source]) -> Structure | None:
    """The model whose every weight the user states, whatever its names; None where he states fewer, or they do not fit.

    A layout that he leaves out is PyTorch's.
    """
    templates = template_shapes()
    if not all(name in given for name in templates if name.endswith(".weight")):
        return None
    stated = {
        name: source._replace(pattern=source.pattern or canonical_pattern(len(templates[name])))
        for name, source in given.items()
    }
    first = stated["blocks.{i}.token_mixing.fc1.weight"].name
    if "{i}" not in first:
        return None
    num_blocks = next(i for i in itertools.count() if first.replace("{i}", str(i)) not in shapes)
    names = {
        name: Source(source.name.replace("{i}", str(i)), source.pattern)
        for name in weight_shapes(ModelConfig(num_blocks=max(num_blocks, 1)))
        for i in re.findall(r"\.(\d+)\.", name) or ["0"]
        if (source := stated.get(template(name)))
    }
    if not num_blocks or {source.name for source in names.values()} != set(shapes):
        return None

    if any(len(axes(source.pattern)) != len(shapes[source.name]) for source in names.values()):
        return None

    def size(name: str, axis: str) -> int:
        source = names[name]
        parts = axes(source.pattern)
        length = dict(zip(parts, shapes[source.name], strict=False)).get(axis)
        if length is None:  # the patch's rows, in an axis that the file joins
            return math.isqrt(max(shapes[source.name][parts.index(next(p for p in parts if "h" in p))] // 3, 1))
        return length

    C, patch = size("stem.weight", "o"), size("stem.weight", "h")
    for kind in [block] if block else ["mixer", "tutorial"]:
        patches = size("blocks.0.token_mixing.fc1.weight", "i")
        S = size("blocks.0.token_norm.weight", "o") if kind == "tutorial" else patches
        config = _config(
            S, patch, kind, names["head.weight"].pattern, num_classes=size("head.weight", "o"), hidden_dim=C,
            num_blocks=num_blocks, tokens_mlp_dim=size("blocks.0.token_mixing.fc1.weight", "o"),
            channels_mlp_dim=size("blocks.0.channel_mixing.fc1.weight", "o"),
        )  # fmt: skip
        expected = weight_shapes(config)
        if all(file_shape(expected[name], source.pattern) == shapes[source.name] for name, source in names.items()):
            return Structure(config, names, block is not None or S != C)
    return None


class NoStructure(Exception):
    """The arrays are those of no Mixer."""


class AmbiguousStructure(UserError):
    """More than one mapping fits the arrays: `structures`."""

    def __init__(self, message: str, structures: Sequence[Structure]):
        super().__init__(message)
        self.structures = structures


def _is_class_token(name: str, shape: tuple[int, ...]) -> bool:
    return bool(_CLASS_TOKEN.search(name)) or (len(shape) == 3 and shape[:2] == (1, 1) and shape[2] > 1)


def _structures(shapes: Shapes, block: str | None, given: Mapping[str, Source]) -> list[Structure]:
    """Every model that fits the shapes, the words, and the order; those of the mixer block first."""
    modules = _modules(shapes)
    if modules is None:
        return []
    ordered = list(shapes) != sorted(shapes)  # a sorted file does not tell how the model was built
    found: list[Structure] = []
    for has_head, (blocks, rest) in itertools.product((True, False), list(_blocks(modules))):
        for kind in [block] if block else ["mixer", "tutorial"]:
            fitting = [
                structure
                for transposed in (False, True)
                for ends in _ends(rest, transposed, has_head)
                for structure in _fitting(blocks, ends, kind, transposed)
                if _agrees(structure, given)
            ]
            found += likeliest(fitting, modules, ordered)
        if found:
            return found
    return found


def _modules(shapes: Shapes) -> list[Module] | None:
    """The modules of the arrays in the order of the file; None where one is no matrix with a bias, and no norm."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        parts = list(SEPARATOR.finditer(name))
        grouped[name[: parts[-1].start()] if parts else ""].append(name)
    modules = []
    for place, (path, names) in enumerate(grouped.items()):
        vectors = [name for name in names if sum(size != 1 for size in shapes[name]) <= 1 and len(shapes[name]) < 2]
        matrices = [name for name in names if name not in vectors]
        if len(names) > 2 or len(matrices) > 1:
            return None
        if len(vectors) == 2 and _BIASES.search(vectors[0]) and not _BIASES.search(vectors[1]):
            vectors.reverse()
        weight, *biases = matrices + vectors
        bias = biases[0] if biases else None
        modules.append(Module(path, weight, shapes[weight], bias, shapes[bias][0] if bias else None, place))
    return modules


def _blocks(modules: Sequence[Module]) -> Iterator[tuple[list[list[Module]], list[Module]]]:
    """The modules of each block, and the rest, for every number in the names that can be the block's; most blocks
    first."""
    families: dict[tuple[str, str], dict[int, Module]] = defaultdict(dict)
    keys: dict[str, list[tuple[int, tuple[str, str]]]] = defaultdict(list)
    for module in modules:
        for digits in re.finditer(r"\d{1,9}", module.path):
            key = module.path[: digits.start()], module.path[digits.end() :]
            families[key][int(digits[0])] = module
            keys[module.path].append((int(digits[0]), key))
    alike = {
        key: tuple(sorted(family))
        for key, family in families.items()
        if len({(module.shape, module.bias_size) for module in family.values()}) == 1
    }
    for numbers in sorted(set(alike.values()), key=len, reverse=True):
        if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
            continue
        # Of several numbers in a name, the first that can be the block's is.
        of_block = {
            path: next((number for number, key in found if alike.get(key) == numbers), None)
            for path, found in keys.items()
        }
        blocks = [[module for module in modules if of_block.get(module.path) == number] for number in numbers]
        if all(len(block) == len(ROLES) for block in blocks):
            yield blocks, [module for module in modules if of_block.get(module.path) is None]


class _Ends(NamedTuple):
    """The modules before and after the blocks, and the sizes that they tell."""

    stem: Module
    stem_pattern: str
    norm: Module
    head: Module | None  # None: the file has none
    head_pattern: str  # that of the other linear layers where there is no head
    hidden_dim: int
    patch_size: int
    num_classes: int


def _ends(rest: Sequence[Module], transposed: bool, has_head: bool) -> Iterator[_Ends]:
    """Every way to take the rest as stem, norm and head, or as stem and norm alone."""
    norms, matrices = [m for m in rest if m.is_norm], [m for m in rest if not m.is_norm]
    if len(norms) != 1 or len(matrices) != 1 + has_head:
        return
    (norm,) = norms
    C = norm.shape[0]
    if not _bias_fits(norm, C):
        return
    for stem, *heads in itertools.permutations(matrices):
        for head, head_pattern, num_classes in _heads(heads, C, transposed):
            for stem_pattern, patch in _stem_patterns(stem, C, transposed):
                if _bias_fits(stem, C):
                    yield _Ends(stem, stem_pattern, norm, head, head_pattern, C, patch, num_classes)


def _heads(heads: Sequence[Module], C: int, transposed: bool) -> Iterator[tuple[Module | None, str, int]]:
    """The head that one module can be, its layouts and its number of classes; of no module, one of one class."""
    if not heads:
        yield None, "i o" if transposed else "o i", 1
    for head in heads:
        for pattern in _linear_patterns(head, transposed):
            sizes = _sizes(head, pattern)
            if sizes and sizes[1] == C and _bias_fits(head, sizes[0]):
                yield head, pattern, sizes[0]


def _stem_patterns(stem: Module, C: int, transposed: bool) -> Iterator[tuple[str, int]]:
    """The layouts that a stem can have, and the side of its patches."""
    shape = stem.shape
    if len(shape) == 4:
        if not transposed and shape[:2] == (C, 3) and shape[2] == shape[3]:
            yield "o i h w", shape[2]
        if transposed and shape[2:] == (3, C) and shape[0] == shape[1]:
            yield "h w i o", shape[0]
    elif len(shape) == 2:
        out, pixels = shape[::-1] if transposed else shape
        patch = math.isqrt(pixels // 3)
        if out == C and 3 * patch**2 == pixels and patch:
            for order in ("h w i", "i h w") if patch > 1 else ("h w i",):
                yield (f"({order}) o" if transposed else f"o ({order})"), patch


def _linear_patterns(module: Module, transposed: bool) -> list[str]:
    """The layouts of a linear layer with so many axes; transposed: input first, as Flax has it."""
    patterns = ("i o", "1 i o", "1 1 i o") if transposed else ("o i", "o i 1", "o i 1 1")
    return [pattern for pattern in patterns if len(pattern.split()) == len(module.shape)]


def _sizes(module: Module, pattern: str) -> tuple[int, int] | None:
    """Out and in of a linear layer; None where an axis that must be 1 is not."""
    sizes = dict(zip(pattern.split(), module.shape, strict=True))
    ones = [size for axis, size in zip(pattern.split(), module.shape, strict=True) if axis == "1"]
    return (sizes["o"], sizes["i"]) if all(size == 1 for size in ones) else None


def _bias_fits(module: Module, size: int) -> bool:
    return module.bias_size in (None, size)


def _fitting(blocks: Sequence[Sequence[Module]], ends: _Ends, kind: str, transposed: bool) -> Iterator[Structure]:
    """Every assignment of a block's modules to its roles that fits the shapes."""
    C, first = ends.hidden_dim, blocks[0]
    norms = [i for i, module in enumerate(first) if module.is_norm]
    matrices = [i for i, module in enumerate(first) if not module.is_norm]
    if len(norms) != 2:
        return
    linear: dict[int, tuple[str, tuple[int, int]]] = {}
    for i in matrices:
        for pattern in _linear_patterns(first[i], transposed):
            if (sizes := _sizes(first[i], pattern)) and _bias_fits(first[i], sizes[0]):
                linear[i] = pattern, sizes
    if len(linear) != 4:
        return
    for (n1, n2), (t1, t2, c1, c2) in itertools.product(
        itertools.permutations(norms), itertools.permutations(matrices)
    ):
        (T, width), (D, channels) = linear[t1][1], linear[c1][1]
        S = first[n1].shape[0] if kind == "tutorial" else width
        if (
            linear[t2][1] == (width, T)
            and linear[c2][1] == (channels, D)
            and channels == C
            and first[n2].shape == (C,)
            and (width == C if kind == "tutorial" else first[n1].shape == (C,))
            and _bias_fits(first[n1], first[n1].shape[0])
            and _bias_fits(first[n2], C)
        ):
            order = (n1, t1, t2, n2, c1, c2)
            yield _structure(blocks, order, {i: pattern for i, (pattern, _) in linear.items()}, ends, kind, (S, T, D))


def _structure(blocks, order, patterns, ends: _Ends, kind: str, sizes: tuple[int, int, int]) -> Structure:
    """The config and the names of one assignment."""
    S, T, D = sizes
    config = _config(
        S, ends.patch_size, kind, ends.head_pattern, num_classes=ends.num_classes, hidden_dim=ends.hidden_dim,
        num_blocks=len(blocks), tokens_mlp_dim=T, channels_mlp_dim=D,
    )  # fmt: skip
    modules = {"stem": (ends.stem, ends.stem_pattern), "norm": (ends.norm, "o")}
    if ends.head:
        modules["head"] = ends.head, ends.head_pattern
    for number, block in enumerate(blocks):
        for role, i in zip(ROLES, order, strict=True):
            modules[f"blocks.{number}.{role}"] = block[i], patterns.get(i, "o")
    names = {}
    for name in weight_shapes(config):
        module, pattern = modules.get(name.rpartition(".")[0], (None, ""))
        if module is None:
            continue
        if name.endswith(".weight"):
            names[name] = Source(module.weight, pattern)
        elif module.bias:
            names[name] = Source(module.bias, "o")
    return Structure(config, names, True)


def _config(num_patches: int, patch_size: int, block: str, head_pattern: str, **sizes: int) -> ModelConfig:
    """A config for the squarest image. The head's layout tells whose GELU and epsilon are usual."""
    flax = "i o" in head_pattern
    own: dict[str, Any] = {
        "block": block,
        "gelu": "tanh" if flax else "exact",
        "layer_norm_epsilon": 1e-6 if flax else 1e-5,
        "init": "flax" if flax else "pytorch",
    }
    return ModelConfig(image_size=squarest_image(num_patches, patch_size), patch_size=patch_size, **sizes, **own)


def _agrees(structure: Structure, given: Mapping[str, Source]) -> bool:
    """Whether a structure has the names and the layouts that the user states."""
    for name, source in given.items():
        for i in range(structure.config.num_blocks) if "{i}" in name else [0]:
            found = structure.names.get(name.replace("{i}", str(i)))
            if found is None or source.pattern not in ("", found.pattern):
                return False
            # Their numbers of the blocks may begin at another one than ours.
            if not re.fullmatch(re.escape(source.name).replace(r"\{i\}", r"\d+"), found.name):
                return False
    return True


def _difference(a: Structure, b: Structure) -> str:
    """The first array in which two mappings differ, with both places."""
    name = _first_difference(a, b)
    return " or ".join(
        f"{name} is {structure.names[name].name} in the layout {structure.names[name].pattern!r}"
        for structure in (a, b)
    )


def _toml_line(a: Structure, b: Structure) -> str:
    name = _first_difference(a, b)
    return f'"{name}" = {{name = "{a.names[name].name}", layout = "{a.names[name].pattern}"}}'


def _first_difference(a: Structure, b: Structure) -> str:
    return next(name for name in a.names if a.names[name] != b.names.get(name))
