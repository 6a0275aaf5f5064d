"""Somebody's torch.nn.Module, watched while it computes: an implementation of mixer_common.interface.OpenedModule.

Twin of mixer_jax/modules.py. This runs the user's own code.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixer_common.comparison.factories import evaluation_arguments
from mixer_common.interface import ModuleCall, ModuleError, ModuleReplacements, ModuleRun
from mixer_common.weights.pixels import is_scale
from mixer_common.weights.reading import plain_array
from mixer_torch.device import COMPUTE_DTYPE, WEIGHTS_DTYPE
from mixer_torch.train import cross_entropy


def open_module(model: Any) -> "OpenedModule | None":
    """A torch.nn.Module, made ready for being watched; None for anything else."""
    return OpenedModule(model) if isinstance(model, nn.Module) else None


class OpenedModule:
    """A torch.nn.Module; see mixer_common.interface.OpenedModule."""

    def __init__(self, module: nn.Module, loaded: Mapping[str, np.ndarray] | None = None):
        """loaded: what some of its arrays hold while it computes."""
        self._module = getattr(module, "_orig_mod", module)  # torch.compile wraps it, and its hooks would not fire
        self._loaded = dict(loaded or {})

    @property
    def kind(self) -> str:
        return f"a torch.nn.Module ({type(self._module).__name__})"

    def initialised(self, pixels: np.ndarray) -> bool:
        return False  # a torch.nn.Module holds its weights

    def arrays(self) -> dict[str, np.ndarray]:
        buffers = {name: buffer for name, buffer in self._module.named_buffers() if is_scale(name)}
        tensors = {**dict(self._module.named_parameters()), **buffers}
        return {name: plain_array(tensor) for name, tensor in tensors.items()} | self._loaded

    def load(self, arrays: Mapping[str, np.ndarray]) -> "OpenedModule":
        return OpenedModule(self._module, {**self._loaded, **arrays})

    def run(
        self,
        pixels: np.ndarray,
        precision: str,
        device: torch.device,
        labels: np.ndarray | None = None,
        replacements: ModuleReplacements | None = None,
    ) -> ModuleRun:
        dtype, compute = WEIGHTS_DTYPE[precision], COMPUTE_DTYPE[precision]
        x = torch.tensor(np.ascontiguousarray(pixels), device=device, dtype=compute)
        with _prepared(self._module, self._loaded, device, compute, labels is not None) as module:
            watch = _Watch(module, dtype, replacements or {}, labels is not None)
            with torch.set_grad_enabled(labels is not None):
                output = watch.call(x)
                if labels is None:
                    again = _Watch(module, dtype, {}, False)
                    if replacements is None:
                        again.call(x)
                    return ModuleRun(tuple(watch.calls), random=_differing(watch, again))
            gradients: dict[str, np.ndarray] = {}
            logits = _tensor_in(output)
            if logits is not None and logits.requires_grad:
                targets = torch.from_numpy(labels.astype(np.int64)).to(device)
                cross_entropy(logits.to(dtype), targets, 0.0).backward()
                gradients = {
                    name: _to_numpy(parameter.grad, dtype)
                    for name, parameter in module.named_parameters()
                    if parameter.grad is not None
                }
            return ModuleRun(tuple(watch.with_gradients()), gradients)


@contextmanager
def _prepared(
    module: nn.Module, loaded: Mapping[str, np.ndarray], device: torch.device, dtype: torch.dtype, gradients: bool
) -> Iterator[nn.Module]:
    """The module in evaluation, on the device, in `dtype`, with other values for some of its arrays; afterwards it is
    as it was.

    It is no copy, since a module may refer to itself or to another in ways that a copy does not follow.
    """
    modes = [(each, each.training) for each in module.modules()]
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in module.parameters()]
    tensors = [
        (table, name, tensor)
        for each in module.modules()
        for table in (each._parameters, each._buffers)
        for name, tensor in table.items()
    ]
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    try:
        for name, array in loaded.items():
            named[name].data = torch.tensor(np.ascontiguousarray(array), device=named[name].device)
        for parameter in module.parameters():
            parameter.grad = None
        module.eval().to(device=device, dtype=dtype).requires_grad_(gradients)
        yield module
    finally:
        for table, name, tensor in tensors:
            table[name] = tensor  # pyright: ignore[reportArgumentType]
        for parameter, data, gradient, requires_grad in parameters:
            parameter.data = data
            parameter.grad, parameter.requires_grad = gradient, requires_grad
        for each, training in modes:
            each.training = training


class _Watch:
    """Hooks on every submodule, which record what it is given and returns, and replace both."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, replacements: ModuleReplacements, gradients: bool):
        self.module, self.dtype, self.replacements, self.gradients = module, dtype, replacements, gradients
        self.calls: list[ModuleCall] = []
        self.numbers: dict[str, int] = {}
        self.open: list[tuple[str, int, Tensor | None, np.ndarray | None]] = []
        self.arrived: dict[tuple[str, int, str], Tensor] = {}

    def call(self, x: Tensor) -> Any:
        """The output of the module for pixels x. Raises ModuleError where it raises."""
        handles = []
        for path, submodule in self.module.named_modules():
            # The first to see what a submodule is given, the last to see what it returns, whatever hooks it has itself.
            handles.append(submodule.register_forward_pre_hook(self._before(path), with_kwargs=True))
            handles.append(submodule.register_forward_hook(self._after(path)))
        try:
            return self.module(x, **evaluation_arguments(self.module.forward))
        except Exception as error:
            raise ModuleError(self.open[-1][0] if self.open else "") from error
        finally:
            for handle in handles:
                handle.remove()

    def with_gradients(self) -> list[ModuleCall]:
        """The calls with the gradients that arrived on the way back."""

        def gradient(call: ModuleCall, end: str) -> np.ndarray | None:
            arrived = self.arrived.get((call.path, call.number, end))
            return None if arrived is None else _to_numpy(arrived, self.dtype)

        return [
            replace(call, input_gradient=gradient(call, "input"), output_gradient=gradient(call, "output"))
            for call in self.calls
        ]

    def _before(self, path: str):
        def hook(module: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
            number = self.numbers.get(path, 0)
            self.numbers[path] = number + 1
            tensor = _tensor_in((*arguments, *named.values()))
            self.open.append((path, number, tensor, self._record(tensor, path, number, "input")))
            other = self.replacements.get((path, number), (None, None))[0]
            if other is None or tensor is None:
                return None
            changed = _replaced(arguments, tensor, other), _replaced(tuple(named.values()), tensor, other)
            return changed[0], dict(zip(named, changed[1], strict=True))

        return hook

    def _after(self, path: str):
        def hook(module: nn.Module, arguments: tuple, output: Any) -> Any:
            _, number, _, given = self.open.pop()
            tensor = _tensor_in(output)
            value = self._record(tensor, path, number, "output")
            kind = str(tensor.dtype).removeprefix("torch.") if tensor is not None else ""
            self.calls.append(ModuleCall(path, number, type(module).__name__, given, value, kind))
            other = self.replacements.get((path, number), (None, None))[1]
            if other is None or tensor is None:
                return None
            return _replaced((output,), tensor, other)[0]

        return hook

    def _record(self, tensor: Tensor | None, path: str, number: int, end: str) -> np.ndarray | None:
        if tensor is None:
            return None
        if self.gradients and tensor.requires_grad:
            # A hook sees the gradient of the tensor as it is now, also where it is changed in place later.
            tensor.register_hook(lambda gradient: self.arrived.__setitem__((path, number, end), gradient))
        return _to_numpy(tensor, self.dtype)


def _tensor_in(value: Any) -> Tensor | None:
    """The first floating-point tensor in what a module is given or returns."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((tensor for each in values if (tensor := _tensor_in(each)) is not None), None)


def _replaced(values: tuple, tensor: Tensor, other: np.ndarray) -> tuple:
    """The values with other numbers in place of a tensor."""
    new = torch.tensor(np.ascontiguousarray(other), device=tensor.device, dtype=tensor.dtype)
    return tuple(
        new
        if value is tensor
        else type(value)(_replaced(tuple(value), tensor, other))
        if type(value) in (tuple, list)
        else value
        for value in values
    )


def _to_numpy(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    return np.array(tensor.detach().to(dtype).cpu(), order="C")


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
