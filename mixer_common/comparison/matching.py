"""The activations of a Mixer among the calls of somebody's module.

A submodule that holds a layer's weight is that layer, and what it returns is the layer's activation. Activations that
no weight gives stand before a layer: GELU is what fc2 is given, the mean over the patches what the head is given, and
the residual stream what the next norm is given. The axes are told by their sizes; where two of them are equal, by what
the layer before returns and by what the layer's weights give of that. What cannot be found so is sought by its value.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from mixer_common.comparison.arithmetic import gelu_forms, layer_norm, linear, patches_of, stem
from mixer_common.comparison.differences import relative_error
from mixer_common.comparison.module_weights import ModuleWeights
from mixer_common.config.model import ImageSize, Layer, layers
from mixer_common.interface import ModuleCall, ModuleRun

# Chosen. Values that differ by less, relative to their largest, are those of one layer, in whatever precision.
_SAME = 0.03


class Layout(NamedTuple):
    """The axes of a module's array, of a canonical activation (N, P, Q) or (N, Q)."""

    axes: str  # for people; "N,h,w" stands for a grid of patches, "NP" for both axes in one
    swapped: bool  # Q before P

    def canonical(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The canonical activation, of the canonical `shape` without N."""
        if len(shape) == 1:
            return x.reshape(-1, *shape)
        swapped = shape[::-1] if self.swapped else shape
        x = x.reshape(-1, *swapped)
        return x.swapaxes(1, 2) if self.swapped else x

    def own(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The module's array of the canonical one; `shape` is that of the module's."""
        return (x.swapaxes(1, 2) if self.swapped else x).reshape(shape)


class Place(NamedTuple):
    """The place of a canonical activation in a ModuleRun."""

    call: int  # its number in ModuleRun.calls
    end: Literal["input", "output"]
    layout: Layout | None  # None where its shape is none that the layer can have
    shape: tuple[int, ...]  # canonical, without N

    def array(self, run: ModuleRun, gradient: bool = False) -> np.ndarray | None:
        """The canonical activation, or its gradient; None where there is none."""
        call = run.calls[self.call]
        if gradient:
            x = call.input_gradient if self.end == "input" else call.output_gradient
        else:
            x = call.input if self.end == "input" else call.output
        return x if x is None or self.layout is None else self.layout.canonical(x, self.shape)


@dataclass(frozen=True)
class Matching:
    """Which call of a module computes which layer."""

    calls: Mapping[str, int]  # layer with weights: the number of its call in ModuleRun.calls
    inputs: Mapping[str, Place]  # the same layers: what they are given, but for the stem
    places: Mapping[str, Place]  # by activation name
    order: tuple[str, ...]  # the names of all activations of such a Mixer
    stream: Mapping[str, str]  # a residual activation: the one before it in the residual stream, as it is computed
    sums: tuple[str, ...] = ()  # residual activations that no submodule is given; stream and branch are added
    lines: tuple[str, ...] = ()  # for people: one for each layer
    observations: tuple[str, ...] = field(default=())  # for people: what differs from a Mixer

    def activations(self, run: ModuleRun) -> dict[str, np.ndarray]:
        """The activations that were found, in network order."""
        found = {name: array for name, place in self.places.items() if (array := place.array(run)) is not None}
        for name in self.sums:
            if (total := _sum_of(found.get(self.stream[name]), found.get(f"{name}.fc2"))) is not None:
                found[name] = total
        return {name: found[name] for name in self.order if name in found}

    def gradients(self, run: ModuleRun) -> dict[str, np.ndarray]:
        """The gradients of the activations, as far as they arrive.

        That of the residual stream is that of the branch that was added last: a sum passes its gradient on unchanged.
        """
        found = {}
        for name, place in self.gradient_places.items():
            if (gradient := place.array(run, gradient=True)) is not None:
                found[name] = gradient
        return found

    @property
    def gradient_places(self) -> dict[str, Place]:
        """The places whose gradients are those of the activations, as far as they are known."""
        branches = {name: f"{name}.fc2" for name in self.order if name in self.stream}
        sources = {name: self.places.get(branches.get(name, name)) for name in self.order}
        return {name: place for name, place in sources.items() if place is not None}


def match_layers(run: ModuleRun, weights: ModuleWeights, pixels: np.ndarray) -> Matching:
    """The layers of a module by its weights, else by order and shape, else by value.

    pixels: (N, H, W, 3) from -1 to 1, of which the module was given its own form.
    """
    return _Matcher(run, weights, pixels).match()


def agreement(run: ModuleRun, weights: ModuleWeights, pixels: np.ndarray) -> tuple[int, int, int]:
    """How many layers return what their weights give of their input, how many are given what a Mixer gives them, and
    how many are called in the network's order; to compare several mappings of the weights of one module."""
    matcher = _Matcher(run, weights, pixels)
    matcher.place_calls()
    right = 0
    for name in matcher.calls:
        layer, place = matcher.layers[name], matcher.places[name]
        x = pixels if name == "stem" else matcher.inputs[name].array(run)
        expected = None if x is None else matcher.expected(layer, x)
        right += _distance(place.array(run), expected) < _SAME
    network = [name for name in matcher.layers if name in matcher.calls]
    return right, matcher.linked, sum(a == b for a, b in zip(network, matcher.calls, strict=True))


class _Matcher:
    def __init__(self, run: ModuleRun, weights: ModuleWeights, pixels: np.ndarray):
        self.run, self.weights, self.pixels = run, weights, pixels
        self.layers: dict[str, Layer] = {layer.name: layer for layer in layers(weights.config)}
        self.calls: dict[str, int] = {}
        self.inputs: dict[str, Place] = {}
        self.places: dict[str, Place] = {}
        self.stream: dict[str, str] = {}
        self.sums: list[str] = []
        self.found_by: dict[str, str] = {}
        self.observations: list[str] = []
        self.linked = 0  # layers that are given what a Mixer gives them

    def match(self) -> Matching:
        self.place_calls()
        self._place_stream()
        self._place_between()
        for layer in self.layers.values():
            if layer.name not in self.places and layer.name not in self.sums:
                self._seek_value(layer)
        self._check_stem()
        self._observe()
        return Matching(
            self.calls,
            self.inputs,
            {name: self.places[name] for name in self.layers if name in self.places},
            tuple(self.layers),
            self.stream,
            tuple(self.sums),
            tuple(self._lines()),
            tuple(self.observations),
        )

    def place_calls(self) -> None:
        """Finds the calls of the layers that have weights, with the layouts of their inputs and outputs."""
        self._find_calls()
        self._count_patches()
        self._place_layers()

    def _find_calls(self) -> None:
        """The first call of the submodule that holds each layer's weight, if it holds no other's."""
        owners = {name: self.weights.owner(name) for name, layer in self.layers.items() if layer.weight}
        counts = list(owners.values())
        by_path: dict[str, list[int]] = {}
        for number, call in enumerate(self.run.calls):
            by_path.setdefault(call.path, []).append(number)
        for name, path in owners.items():
            if path is None:
                continue  # it has no such layer, which is observed where the weights are read
            if counts.count(path) > 1 or path == "":
                self.observations.append(
                    f"{path or 'The module itself'} holds the weights of several layers, {name} among them, so that "
                    "what it returns is no single layer's."
                )
            elif path not in by_path:
                self.observations.append(f"{name} ({path}) is never called.")
            else:
                self.calls[name] = by_path[path][0]
                if len(by_path[path]) > 1:
                    self.observations.append(
                        f"{name} ({path}) is called {len(by_path[path])} times; the first call is compared."
                    )
        self.calls = dict(sorted(self.calls.items(), key=lambda item: item[1]))

    def _count_patches(self) -> None:
        """Takes the number of patches from what enters the blocks, where the weights tell another."""
        config = self.weights.config
        first = next((self.run.calls[number].input for name, number in self.calls.items() if name != "stem"), None)
        patches = 0 if first is None else first.size // (len(self.pixels) * config.hidden_dim)
        if first is None or first.ndim < 3 or patches in (0, config.num_patches):
            return
        self.observations.append(
            f"{patches} patches enter the blocks, and token mixing has weights for {config.num_patches}"
            + (": as many as channels, so that it mixes these." if config.num_patches == config.hidden_dim else ".")
        )
        config = replace(config, image_size=ImageSize(config.patch_size, patches * config.patch_size))
        self.layers = {layer.name: layer for layer in layers(config)}

    def _place_layers(self) -> None:
        """Where the input and the output of each called layer stand, in the order of the calls."""
        stream: np.ndarray | None = None  # as a Mixer has it before the layer
        before: np.ndarray | None = None  # what the layer before returned
        for name in self.calls:
            layer = self.layers[name]
            if layer.kind == "stem":
                self._place_stem(layer, self.run.calls[self.calls[name]])
                stream = self.places[name].array(self.run)
                continue
            if layer.kind == "norm":
                expected = stream
            elif name.endswith("fc2"):
                expected = None if before is None else gelu_forms(before.astype(np.float64))["exact"]
            else:
                expected = before if name.endswith("fc1") else None
            self._place_layer(layer, expected)
            self.linked += _distance(self.inputs[name].array(self.run), expected) < _SAME
            if name.endswith("fc1"):
                self._check_input(layer, before, stream)
            before = self.places[name].array(self.run)
            if name.endswith("fc2"):
                stream = _sum_of(stream, before)

    def _place_layer(self, layer: Layer, expected: np.ndarray | None) -> None:
        """Where a layer's input and output stand, and in which layouts; expected: its input in a Mixer."""
        number = self.calls[layer.name]
        call = self.run.calls[number]
        given, returned = self._input_shape(layer), layer.activation
        inputs = list(_layouts(call.input, given, len(self.pixels)))
        outputs = list(_layouts(call.output, returned, len(self.pixels)))
        # A layer changes the size of one axis and leaves the others where they are.
        pairs = [(a, b) for a in inputs for b in outputs if a.swapped == b.swapped or len(returned) == 1]
        pairs = pairs or [(a, b) for a in inputs or [None] for b in outputs or [None]]
        if len(pairs) > 1:

            def unlikely(pair: tuple[Layout | None, Layout | None]) -> tuple[bool, bool, float]:
                a, error = pair[0], self._error(layer, call, pair, given)
                x = None if a is None or call.input is None else a.canonical(call.input, given)
                return not error < _SAME, not _distance(x, expected) < _SAME, error

            pairs.sort(key=unlikely)
        a, b = pairs[0]
        self.inputs[layer.name] = Place(number, "input", a, given)
        self.places[layer.name] = Place(number, "output", b, returned)
        for layout, x, shape, verb in ((a, call.input, given, "is given"), (b, call.output, returned, "returns")):
            if layout is None and x is not None:
                self.observations.append(
                    f"{layer.name} {verb} an array of {_sizes(x)}, where a Mixer has {' x '.join(map(str, shape))}."
                )

    def _check_input(self, layer: Layer, normalised: np.ndarray | None, stream: np.ndarray | None) -> None:
        """What an MLP is given must be what its norm returned."""
        given = self.inputs[layer.name].array(self.run)
        norm = layer.name.replace("mixing.fc1", "norm")
        if given is None or normalised is None or norm not in self.calls or _distance(given, normalised) < _SAME:
            return
        if _distance(given, stream) < _SAME:
            self.observations.append(f"{layer.name} is given the residual stream: what {norm} returns is not used.")
        elif _distance(given.swapaxes(1, 2) if given.ndim == 3 else None, normalised) < _SAME:
            axes = ("channels", "patches") if layer.over_patches else ("patches", "channels")
            self.observations.append(
                f"{layer.name} mixes the {axes[0]}, where a Mixer mixes the {axes[1]}: patches and channels are not "
                "swapped before it, or are where they should not be."
            )
        elif list(self.calls).index(norm) == list(self.calls).index(layer.name) - 1:
            self.observations.append(f"{layer.name} is not given what {norm} returns.")

    def _place_stem(self, layer: Layer, call: ModuleCall) -> None:
        """The stem may give more or fewer patches than the blocks mix, where a class token is among them."""
        number, C = self.calls["stem"], layer.activation[-1]
        x, count = call.output, len(self.pixels)
        size = 0 if x is None else x.size // (count * C)
        fitting = list(_layouts(x, (size, C), count))
        pattern = self.weights.layouts.get("stem.weight", "")
        if call.input is not None and pattern.startswith("o (") and call.input.ndim == 3:
            patch = math.isqrt(call.input.shape[-1] // 3)
            self.linked += _distance(call.input, patches_of(self.pixels, patch, pattern[3:-1])) < _SAME
        if len(fitting) > 1:
            right = stem(self.pixels, *self._arrays(layer))
            fitting.sort(key=lambda layout: _distance(layout.canonical(x, (size, C)), right))  # type: ignore[arg-type]
        self.places["stem"] = Place(number, "output", fitting[0] if fitting else None, (size, C))

    def _place_stream(self) -> None:
        """The residual stream is what the first layer after each branch is given."""
        called, network = list(self.calls), [name for name, layer in self.layers.items() if layer.weight]
        branches = [name for name in called if name.endswith("_mixing.fc2")]
        # A branch that is not called is taken to lie where a Mixer has it.
        for name in network:
            if name.endswith("_mixing.fc2") and name not in called:
                later = [branch for branch in branches if network.index(branch) > network.index(name)]
                branches.insert(branches.index(later[0]) if later else len(branches), name)
        before = "stem"
        for branch in branches:
            residual = branch.removesuffix(".fc2")
            self.stream[residual] = before
            before = residual
            order = called if branch in called else network
            name = next((name for name in order[order.index(branch) + 1 :] if name in self.inputs), "")
            between = network[network.index(branch) + 1 : network.index(name)] if name else []
            # Another branch that is not called may lie between them, and add to the stream.
            starts_branch = name.endswith(("norm", "fc1")) and not any(
                other.endswith("fc2") and other not in called for other in between
            )
            if starts_branch:
                self.places[residual] = self.inputs[name]
            else:
                self._seek_last_residual(residual, self.calls.get(branch, 0))

    def _seek_last_residual(self, residual: str, after: int) -> None:
        """The stream after the last branch, where no norm follows: what a block returns, else the sum itself."""
        shape = self.layers[residual].activation
        expected = self._sum(residual)
        for number in range(after + 1, len(self.run.calls)):
            for layout in _layouts(self.run.calls[number].output, shape, len(self.pixels)):
                place = Place(number, "output", layout, shape)
                if expected is not None and _distance(place.array(self.run), expected) < _SAME:
                    self.places[residual] = place
                    self.found_by[residual] = ", found by its value"
                    return
        if expected is not None:
            self.sums.append(residual)
            self.observations.append(
                f"{residual} is what no submodule is given or returns: stream and branch are added instead."
            )

    def _sum(self, residual: str) -> np.ndarray | None:
        """The stream before the last branch, and the branch."""
        places = [self.places.get(name) for name in (self.stream[residual], f"{residual}.fc2")]
        return _sum_of(*(None if place is None else place.array(self.run) for place in places))

    def _place_between(self) -> None:
        """What stands between the layers that have weights, and in the place of a norm that is not called."""
        for name, layer in self.layers.items():
            if layer.kind == "gelu":
                self._take_input(name, f"{name.removesuffix('gelu')}fc2")
            elif layer.kind == "pool":
                self._take_input(name, "head")
            elif layer.kind == "norm" and name not in self.places and name != "norm":
                self._take_input(name, f"{name.removesuffix('norm')}mixing.fc1")
        if "norm" not in self.places:
            last = f"blocks.{self.weights.config.num_blocks - 1}.channel_mixing"
            if last in self.places:
                self.places["norm"] = self.places[last]
                self.found_by["norm"] = ", which stands in its place"

    def _take_input(self, name: str, of: str) -> None:
        place = self.inputs.get(of)
        if place is not None and place.array(self.run) is not None:
            self.places[name] = place

    def _seek_value(self, layer: Layer) -> None:
        """A layer whose submodule does not show: the array that has the value that its weights give of its input."""
        before = self._before(layer)
        expected = None if before is None or not layer.weight else self.expected(layer, before)
        if expected is not None:
            for number, call in enumerate(self.run.calls):
                for end, x in (("input", call.input), ("output", call.output)):
                    for layout in _layouts(x, layer.activation, len(self.pixels)):
                        place = Place(number, end, layout, layer.activation)  # type: ignore[arg-type]
                        if _distance(place.array(self.run), expected) < _SAME:
                            self.places[layer.name] = place
                            self.found_by[layer.name] = ", found by its value"
                            return
        self.observations.append(f"{layer.name} is missing: no submodule is given or returns it.")

    def _before(self, layer: Layer) -> np.ndarray | None:
        """The input of a layer, of what was found."""
        if layer.kind == "stem":
            return self.pixels
        names = list(self.layers)
        earlier = names[: names.index(layer.name)]
        if layer.kind == "norm":
            earlier = [name for name in earlier if self.layers[name].kind in ("stem", "residual")]
        place = self.places.get(earlier[-1])
        return None if place is None else place.array(self.run)

    def _check_stem(self) -> None:
        """What enters the first block may be other numbers than the stem gives; then these are its activation."""
        first = next((name for name in self.calls if name in self.inputs), None)
        stem_place, place = self.places.get("stem"), self.inputs.get(first or "")
        if stem_place is None or place is None or not (first or "").startswith("blocks.0."):
            return  # what is called first lies behind layers that no submodule shows
        given, entering = stem_place.array(self.run), place.array(self.run)
        if given is None or entering is None:
            return
        if given.shape[1:] != entering.shape[1:]:
            self.observations.append(
                f"What enters {first} has {_sizes(entering)}, and the stem gives {_sizes(given)}"
                + (
                    ": a class token is among the patches."
                    if given.ndim == entering.ndim == 3 and entering.shape[1] == given.shape[1] + 1
                    else "."
                )
            )
        elif _distance(entering, given) > _SAME:
            own = self.run.calls[stem_place.call].output
            is_reshaped = own is not None and _distance(own.reshape(entering.shape), entering) < _SAME
            self.observations.append(
                f"What enters {first} is not what the stem gives"
                + (
                    f": its array of shape {own.shape} was reshaped to patches and channels without being transposed."
                    if is_reshaped and own is not None
                    else "."
                )
            )
            self.places["stem"] = place

    def _observe(self) -> None:
        """The order of the layers, submodules called again with other results, values of another precision."""
        network = [name for name, layer in self.layers.items() if layer.weight and name in self.calls]
        called = list(self.calls)
        if network != called:
            i = next(i for i, pair in enumerate(zip(network, called, strict=True)) if pair[0] != pair[1])
            self.observations.append(f"{called[i]} is computed before {network[i]}, which a Mixer computes first.")
        if self.run.random:
            places = {self.run.calls[number].path: name for name, number in self.calls.items()}
            first = self.run.random[0]
            self.observations.append(
                f"Two calls give different values, first in {first or 'the module itself'}"
                + (f" ({places[first]})" if first in places else "")
                + ": dropout or another random layer is on in evaluation."
            )
        if self.run.lost:
            self.observations.append(
                f"The values in {', '.join(self.run.lost[:3])} cannot be seen: a transformation such as scan or "
                "checkpoint computes them."
            )
        dtypes = {name: self.run.calls[number].dtype for name, number in self.calls.items()}
        usual = max(dtypes.values(), key=list(dtypes.values()).count, default="")
        for name, dtype in dtypes.items():
            if dtype != usual:
                self.observations.append(f"{name} returns {dtype}, and the others {usual}.")

    def _lines(self) -> Iterator[str]:
        width = max((len(name) for name in self.layers), default=0)
        for name in self.layers:
            place = self.places.get(name)
            if place is None:
                yield f"{name:{width}}  {'stream and branch added' if name in self.sums else 'missing'}"
                continue
            call = self.run.calls[place.call]
            axes = place.layout.axes if place.layout else "of another shape"
            is_owner = call.path == self.weights.owner(name)
            layout = self.weights.layouts.get(f"{name}.weight") if is_owner else None
            if place.end == "output":
                layout = f", weight {layout}" if layout else ""
                line = f"{call.path or 'the module'}  ({call.kind}{layout}; {axes})"
            else:
                line = f"given to {call.path}  ({axes})"
            yield f"{name:{width}}  {line}{self.found_by.get(name, '')}"
        biases = [name for name in self.weights.arrays if name not in self.weights.names]
        if biases:
            yield f"zeros, since the module has none: {', '.join(biases)}"

    # ---- What a layer's weights give

    def _input_shape(self, layer: Layer) -> tuple[int, ...]:
        """The canonical shape of a layer's input, without N."""
        if layer.name.endswith("fc2"):
            return self.layers[layer.name.replace("fc2", "gelu")].activation
        if layer.name == "head":
            return self.layers["pool"].activation
        return self.layers["norm"].activation

    def _arrays(self, layer: Layer) -> list[np.ndarray]:
        """A layer's weight and bias; zeros for a bias that the module does not have."""
        arrays = self.weights.arrays
        weight = arrays[f"{layer.name}.weight"].astype(np.float64)
        bias = arrays.get(f"{layer.name}.bias")
        return [weight, np.zeros(len(weight)) if bias is None else bias.astype(np.float64)]

    def expected(self, layer: Layer, x: np.ndarray) -> np.ndarray | None:
        """What the layer's weights give of its input; None where they do not fit it."""
        if f"{layer.name}.weight" not in self.weights.arrays:
            return None
        weight, bias = self._arrays(layer)
        try:
            if layer.kind == "stem":
                return stem(x, weight, bias)
            if layer.kind == "norm":
                return layer_norm(x, weight, bias, self.weights.config.layer_norm_epsilon, layer.over_patches)
            return linear(x, weight, bias, layer.over_patches)
        except ValueError:
            return None

    def _error(
        self, layer: Layer, call: ModuleCall, pair: tuple[Layout | None, Layout | None], given: tuple[int, ...]
    ) -> float:
        """How far the output is from what the weights give of the input, in these layouts."""
        a, b = pair
        if a is None or b is None or call.input is None or call.output is None:
            return math.inf
        x, y = a.canonical(call.input, given), b.canonical(call.output, layer.activation)
        weight, bias = self._arrays(layer)
        if layer.kind == "norm":
            return _distance(self.expected(layer, x), y)
        # A weight that was loaded transposed still acts on its axis.
        orientations = [weight, weight.T] if weight.shape[0] == weight.shape[1] else [weight]
        try:
            return min(_distance(linear(x, each, bias, layer.over_patches), y) for each in orientations)
        except ValueError:  # weights for another number of patches
            return math.inf


def _layouts(x: np.ndarray | None, shape: tuple[int, ...], count: int) -> Iterator[Layout]:
    """The layouts in which an array can hold a canonical activation of the shape (without N) of `count` images."""
    if x is None:
        return
    if len(shape) == 1:
        if x.size == count * shape[0] and x.shape[0] == count:
            yield Layout("N,C", False)
        return
    P, Q = shape
    for axes, own, swapped in (
        ("N,S,C", (count, P, Q), False),
        ("N,C,S", (count, Q, P), True),
        ("NS,C", (count * P, Q), False),
    ):
        if x.shape == own and not (axes == "NS,C" and x.ndim != 2):
            yield Layout(axes, swapped)
    if x.ndim == 4 and x.shape[0] == count:
        _, a, b, c = x.shape
        if a == Q and b * c == P:
            yield Layout("N,C,h,w", True)
        if c == Q and a * b == P:
            yield Layout("N,h,w,C", False)


def _sum_of(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    """The sum; None where an array is missing or their shapes differ."""
    return None if a is None or b is None or a.shape != b.shape else a + b


def _distance(value: np.ndarray | None, reference: np.ndarray | None) -> float:
    """The relative error, infinite where the arrays are missing, have other shapes or hold NaN."""
    if value is None or reference is None or value.shape != reference.shape or not reference.size:
        return math.inf
    error = relative_error(value, reference)
    return error if error == error else math.inf


def _sizes(x: np.ndarray) -> str:
    return " x ".join(map(str, x.shape[1:]))
