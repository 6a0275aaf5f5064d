"""Somebody's Flax module, watched while it computes: an implementation of mixer_common.interface.OpenedModule.

Twin of mixer_torch/modules.py. This runs the user's own code. Of Flax there are two kinds: an NNX module holds its
weights; a Linen module is given them, its variables.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx, traverse_util
from jax import Array
from jax.core import Tracer

from mixer_common.comparison.factories import evaluation_arguments
from mixer_common.interface import ModuleCall, ModuleError, ModuleReplacements, ModuleRun
from mixer_common.weights.reading import plain_array
from mixer_jax.device import COMPUTE_DTYPE, WEIGHTS_DTYPE, Device
from mixer_jax.train import cross_entropy

# The name of the attribute in which a submodule of NNX carries its path, also through nnx.split and nnx.merge.
_PATH = "path_in_the_watched_module"


def open_module(model: Any) -> "OpenedModule | None":
    """A Flax module, made ready for being watched: an nnx.Module, a Linen module, or one with its variables as
    (module, variables); None for anything else."""
    if isinstance(model, nnx.Module):
        return OpenedModule(_Nnx(*nnx.split(_with_paths(nnx.clone(model))), _order(model), type(model).__name__))
    variables = None
    if isinstance(model, tuple | list) and len(model) == 2:
        model, variables = model
    if not isinstance(model, linen.Module) or not isinstance(variables, Mapping | None):
        return None
    if variables is not None and "params" not in variables:
        variables = {"params": variables}
    return OpenedModule(_Linen(model, variables))


class OpenedModule:
    """A Flax module; see mixer_common.interface.OpenedModule."""

    def __init__(self, module: "_Nnx | _Linen"):
        self._module = module

    @property
    def kind(self) -> str:
        return self._module.kind

    def initialised(self, pixels: np.ndarray) -> bool:
        if not isinstance(self._module, _Linen) or self._module.variables is not None:
            return False
        module = self._module.module
        flags = evaluation_arguments(module.__call__)  # type: ignore[attr-defined]
        try:
            with jax.default_matmul_precision("highest"):
                variables = module.init(_keys(0), jnp.asarray(pixels), **flags)  # pyright: ignore[reportArgumentType]
        except Exception as error:
            raise ModuleError("") from error
        self._module = _Linen(module, variables)
        return True

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: plain_array(value) for name, value in self._module.params().items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> "OpenedModule":
        return OpenedModule(self._module.with_params({**self._module.params(), **arrays}))

    def run(
        self,
        pixels: np.ndarray,
        precision: str,
        device: Device,
        labels: np.ndarray | None = None,
        replacements: ModuleReplacements | None = None,
    ) -> ModuleRun:
        dtype, compute = WEIGHTS_DTYPE[precision], COMPUTE_DTYPE[precision]
        module = self._module.cast(compute, device)
        x = jax.device_put(jnp.asarray(pixels, compute), device)
        watch = _Watch(dtype, replacements or {})
        function = module.function()
        watch.call(function, module.params(), x)
        shown = _Watch(dtype, replacements or {})
        hidden = self._owners() - {call.path for call in watch.calls}
        if watch.lost or hidden:  # jit shows its values where it is switched off, and not at all where it is compiled
            with jax.disable_jit():
                shown.call(function, module.params(), x)
            hidden &= {call.path for call in shown.calls}
        is_jitted = bool(watch.lost or hidden)
        watch = shown if is_jitted else watch
        lost = tuple(dict.fromkeys(watch.lost))
        if labels is None:
            again = _Watch(dtype, {})
            if replacements is None:
                with jax.disable_jit(is_jitted):
                    again.call(function, module.params(), x)
            return ModuleRun(tuple(watch.calls), random=_differing(watch, again), lost=lost)
        with jax.disable_jit(is_jitted):
            return _with_gradients(watch, function, module.params(), x, jnp.asarray(labels), dtype)

    def _owners(self) -> set[str]:
        """The paths of the submodules that hold parameters."""
        return {re.sub(r"(^|[./])[^./]*$", "", name) for name in self._module.params()}


class _Linen(NamedTuple):
    """A Linen module and its variables; None where it has none yet."""

    module: linen.Module
    variables: Mapping[str, Any] | None

    @property
    def kind(self) -> str:
        return f"a Flax Linen module ({type(self.module).__name__})"

    def params(self) -> dict[str, Any]:
        """Parameters by the names of their paths, joined by slashes."""
        return {} if self.variables is None else traverse_util.flatten_dict(dict(self.variables["params"]), sep="/")

    def with_params(self, params: Mapping[str, Any]) -> "_Linen":
        nested = traverse_util.unflatten_dict(dict(params), sep="/")
        return self._replace(variables={**(self.variables or {}), "params": nested})

    def cast(self, dtype: Any, device: Device) -> "_Linen":
        return self._replace(variables=_cast(self.variables, dtype, device))

    def function(self) -> Callable[["_Watch", Mapping[str, Any], Array], Any]:
        """The forward pass of parameters and pixels, with every call of a submodule shown to a _Watch."""
        others = {name: values for name, values in (self.variables or {}).items() if name != "params"}
        flags = evaluation_arguments(self.module.__call__)  # type: ignore[attr-defined]
        seeds = iter(range(1_000_000))

        def call(watch: "_Watch", params: Mapping[str, Any], x: Array) -> Any:
            def intercept(next_function: Callable, arguments: tuple, named: dict, context: Any) -> Any:
                if context.method_name != "__call__":
                    return next_function(*arguments, **named)
                path = "/".join(context.module.path)
                return watch.around(path, type(context.module).__name__, next_function, arguments, named)

            nested = traverse_util.unflatten_dict(dict(params), sep="/")
            # Other keys in every call, so that whatever is random shows.
            keys = _keys(next(seeds))
            with linen.intercept_methods(intercept):
                output, _ = self.module.apply(
                    {**others, "params": nested},
                    x,
                    rngs=keys,
                    mutable=list(others),
                    **flags,  # pyright: ignore[reportArgumentType]
                )
            return output

        return call


class _Nnx(NamedTuple):
    """An NNX module whose submodules know their paths, apart: its graph, its state, the paths of its parameters in the
    order in which it was built."""

    graphdef: Any
    state: Any
    order: tuple[tuple, ...]
    name: str

    @property
    def kind(self) -> str:
        return f"a Flax NNX module ({self.name})"

    def params(self) -> dict[str, Any]:
        """Parameters by the names of their paths, joined by dots."""
        flat = {path: variable for path, variable in nnx.to_flat_state(self.state) if isinstance(variable, nnx.Param)}
        paths = [path for path in self.order if path in flat] + [path for path in flat if path not in self.order]
        return {_dotted(path): flat[path][...] for path in paths}

    def with_params(self, params: Mapping[str, Any]) -> "_Nnx":
        return self._replace(state=_replaced_state(self.state, params))

    def cast(self, dtype: Any, device: Device) -> "_Nnx":
        return self._replace(state=_cast(self.state, dtype, device))

    def function(self) -> Callable[["_Watch", Mapping[str, Any], Array], Any]:
        """The forward pass of parameters and pixels, with every call of a submodule shown to a _Watch."""
        module = nnx.merge(self.graphdef, self.state)
        module.eval()
        flags = evaluation_arguments(type(module).__call__)
        graphdef, state = nnx.split(module)
        rest = [state]  # what a call changes in it, such as the count of random numbers, stays for the next

        def call(watch: "_Watch", params: Mapping[str, Any], x: Array) -> Any:
            module = nnx.merge(graphdef, _replaced_state(rest[0], params))
            with _watched_classes(module, watch):
                output = module(x, **flags)  # type: ignore[operator]
            after = nnx.state(module)
            if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(after)):
                rest[0] = after
            return output

        return call


class _Watch:
    """Records what every submodule is given and returns, adds zeros to both, and replaces both."""

    def __init__(
        self, dtype: Any, replacements: ModuleReplacements, zeros: Mapping[tuple[str, int, str], Array] | None = None
    ):
        """zeros: by path, number and end; their gradients are those of the values that they are added to."""
        self.dtype, self.replacements, self.zeros = dtype, replacements, zeros
        self.calls: list[ModuleCall] = []
        self.lost: list[str] = []
        self.shapes: dict[tuple[str, int, str], jax.ShapeDtypeStruct] = {}
        self.numbers: dict[str, int] = {}
        self.open: list[str] = []

    def call(self, function: Callable, params: Mapping[str, Any], x: Array) -> Any:
        """The output of the module for pixels x. Raises ModuleError where it raises."""
        try:
            return function(self, params, x)
        except Exception as error:
            raise ModuleError(self.open[-1] if self.open else "") from error

    def around(self, path: str, kind: str, function: Callable, arguments: tuple, named: dict) -> Any:
        """The output of a submodule's function, watched."""
        if path in self.open[-1:]:  # a class that calls the one that it inherits from
            return function(*arguments, **named)
        number = self.numbers.get(path, 0)
        self.numbers[path] = number + 1
        values = (*arguments, *named.values())
        array = _array_in(values)
        given = self._record(array, path, number, "input")
        others = self.replacements.get((path, number), (None, None))
        if array is not None:
            new = self._changed(array, path, number, "input", others[0])
            if new is not array:
                values = _replaced(values, array, new)
                arguments = values[: len(arguments)]
                named = dict(zip(named, values[len(arguments) :], strict=True))
        self.open.append(path)
        output = function(*arguments, **named)
        self.open.pop()
        array = _array_in(output)
        returned = self._record(array, path, number, "output")
        dtype = "" if array is None else str(array.dtype)
        self.calls.append(ModuleCall(path, number, kind, given, returned, dtype))
        if array is None:
            return output
        new = self._changed(array, path, number, "output", others[1])
        return output if new is array else _replaced((output,), array, new)[0]

    def _record(self, array: Array | None, path: str, number: int, end: str) -> np.ndarray | None:
        if array is None or self.zeros is not None:
            return None
        if isinstance(array, Tracer):
            self.lost.append(path)
            return None
        self.shapes[path, number, end] = jax.ShapeDtypeStruct(array.shape, array.dtype)
        return np.array(array.astype(self.dtype), order="C")

    def _changed(self, array: Array, path: str, number: int, end: str, other: np.ndarray | None) -> Array:
        if other is not None:
            return jnp.asarray(other, array.dtype)
        zero = (self.zeros or {}).get((path, number, end))
        return array if zero is None else array + zero


def _with_gradients(
    watch: _Watch, function: Callable, params: Mapping[str, Any], x: Array, labels: Array, dtype: Any
) -> ModuleRun:
    """What a module computed, with the gradients of the mean cross-entropy."""
    zeros = {place: jnp.zeros(each.shape, each.dtype) for place, each in watch.shapes.items()}

    def loss(params: Mapping[str, Any], zeros: Mapping[tuple[str, int, str], Array]) -> Array:
        output = _array_in(_Watch(dtype, {}, zeros).call(function, params, x))
        assert output is not None
        return cross_entropy(output.astype(dtype), labels, 0.0)

    keys = list(zeros)
    gradient = jax.grad(lambda params, values: loss(params, dict(zip(keys, values, strict=True))), (0, 1))
    inputs = dict(params), [zeros[key] for key in keys]
    try:
        by_params, by_zeros = jax.jit(gradient)(*inputs)
    except ModuleError as error:
        if not isinstance(error.__cause__, jax.errors.ConcretizationTypeError):
            raise
        by_params, by_zeros = gradient(*inputs)  # a module that looks at values
    arrived = {key: np.asarray(gradient.astype(dtype)) for key, gradient in zip(keys, by_zeros, strict=True)}
    calls = tuple(_call_with_gradients(call, arrived) for call in watch.calls)
    return ModuleRun(calls, {name: np.asarray(gradient.astype(dtype)) for name, gradient in by_params.items()})


def _call_with_gradients(call: ModuleCall, arrived: Mapping[tuple[str, int, str], np.ndarray]) -> ModuleCall:
    ends = {
        f"{end}_gradient": gradient
        for end in ("input", "output")
        if (gradient := arrived.get((call.path, call.number, end))) is not None and gradient.any()
    }
    return replace(call, **ends)


@contextmanager
def _watched_classes(module: nnx.Module, watch: _Watch) -> Iterator[None]:
    """The classes of all submodules with a `__call__` that shows its calls to a _Watch."""
    found = {type(node) for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)}
    classes = [each for each in found if any("__call__" in base.__dict__ for base in each.__mro__)]
    originals = {each: each.__dict__.get("__call__") for each in classes}
    try:
        for each in classes:
            each.__call__ = _watched(each.__call__, watch)  # type: ignore[method-assign]
        yield
    finally:
        for each, original in originals.items():
            if original is None:
                del each.__call__
            else:
                each.__call__ = original


def _watched(original: Callable, watch: _Watch) -> Callable:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        path = vars(self).get(_PATH)
        if path is None:
            return original(self, *arguments, **named)
        return watch.around(
            path, type(self).__name__, lambda *given, **by_name: original(self, *given, **by_name), arguments, named
        )

    return call


def _with_paths(module: nnx.Module) -> nnx.Module:
    """The module, each of whose submodules knows its path."""
    for path, node in list(nnx.iter_graph(module)):
        if isinstance(node, nnx.Module):
            setattr(node, _PATH, _dotted(path))
    return module


def _order(module: nnx.Module) -> tuple[tuple, ...]:
    """The paths of the parameters in the order in which the attributes were set, which Flax sorts."""

    def walk(node: Any, path: tuple) -> Iterator[tuple]:
        if isinstance(node, nnx.Variable):
            yield path
        elif id(node) not in seen:
            seen.add(id(node))
            children: Any = vars(node) if hasattr(node, "__dict__") and isinstance(node, nnx.Pytree) else node
            if isinstance(children, list | tuple):
                children = dict(enumerate(children))
            for key, child in children.items() if isinstance(children, Mapping) else ():
                if not str(key).startswith("_"):
                    yield from walk(child, (*path, int(key) if str(key).isdigit() else key))

    seen: set[int] = set()
    return tuple(walk(module, ()))


def _array_in(value: Any) -> Array | None:
    """The first floating-point array in what a module is given or returns."""
    if isinstance(value, jax.Array | np.ndarray):
        return value if jnp.issubdtype(value.dtype, jnp.floating) else None  # type: ignore[return-value]
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((array for each in values if (array := _array_in(each)) is not None), None)


def _replaced(values: tuple, array: Array, new: Array) -> tuple:
    """The values with another array in place of one."""
    return tuple(
        new
        if value is array
        else type(value)(_replaced(tuple(value), array, new))
        if type(value) in (tuple, list)
        else value
        for value in values
    )


def _replaced_state(state: Any, params: Mapping[str, Any]) -> Any:
    """A copy of a state, with other values for the parameters of these names."""
    return nnx.from_flat_state(
        [
            (path, variable.replace(jnp.asarray(params[_dotted(path)]) if _dotted(path) in params else variable[...]))
            for path, variable in nnx.to_flat_state(state)
        ]
    )


def _cast(tree: Any, dtype: Any, device: Device) -> Any:
    """A tree with its floating-point arrays in `dtype`, on the device."""

    def leaf(value: Any) -> Any:
        is_floating = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
        return jax.device_put(jnp.asarray(value, dtype), device) if is_floating else value

    return jax.tree.map(leaf, tree)


def _keys(seed: int) -> dict[str, Array]:
    """Keys of the collections of random numbers that Linen modules usually draw from."""
    names = ("params", "dropout", "drop_path", "stochastic_depth")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _differing(first: _Watch, again: _Watch) -> tuple[str, ...]:
    """The submodules whose outputs are others when the module is called again."""
    others = {(call.path, call.number): call.output for call in again.calls}
    pairs = [(call.path, call.output, others.get((call.path, call.number))) for call in first.calls]
    return tuple(
        path
        for path, output, other in pairs
        if output is not None and other is not None and output.shape == other.shape
        if not np.allclose(output, other, rtol=1e-3, atol=1e-5, equal_nan=True)
    )
