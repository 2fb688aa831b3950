"""Module: parameters, buffers and sub-modules in a tree, with PyTorch's names and rules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from minires._names import nearest
from minires.autograd import Parameter, Tensor
from minires.autograd.hooks import Handle
from minires.kernels.arrays import as_dtype, is_array, is_floating, names_device
from minires.kernels.geometry import shape_text
from minires.kernels.layout import to_nchw, to_nhwc


class LoadResult(NamedTuple):
    """What `load_state_dict(strict=False)` left out."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base of layers and networks.

    Assigning a Parameter or a Module to an attribute registers it under that name; `forward`
    defines what calling the module computes.
    """

    training: bool
    _kinds: dict[str, type]
    """What is registered: Parameter, Tensor (a buffer) or Module by name. The values are attributes
    like any others."""

    def __init__(self) -> None:
        # Past our own __setattr__, which needs these to exist.
        object.__setattr__(self, "_kinds", {})
        object.__setattr__(self, "_forward_hooks", {})
        object.__setattr__(self, "_forward_pre_hooks", {})
        object.__setattr__(self, "training", True)

    # -- registration ------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if "_kinds" not in self.__dict__:
            raise RuntimeError(f"{type(self).__name__}: call super().__init__() first")
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            self.add_module(name, value)
        else:
            kind = self._kinds.get(name)
            if kind is Tensor and isinstance(value, Tensor):
                kind = None
            if kind is not None and value is not None:
                raise TypeError(
                    f"{type(self).__name__}.{name} holds a {kind.__name__}; assign a "
                    f"{kind.__name__} or None, got {type(value).__name__}"
                )
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__.get("_kinds", ())  # none before __init__ has begun
        guess = nearest(name, [*known, *dir(type(self))])
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._kinds.pop(name, None)

    def _registered(self, kind: type) -> Mapping[str, Any]:
        """The attributes of this kind in their order, None among them; to be read only."""
        own = self.__dict__
        return MappingProxyType({name: own[name] for name, k in self._kinds.items() if k is kind})

    @property
    def _parameters(self) -> Mapping[str, Any]:
        return self._registered(Parameter)

    @property
    def _buffers(self) -> Mapping[str, Any]:
        return self._registered(Tensor)

    @property
    def _modules(self) -> Mapping[str, Any]:
        return self._registered(Module)

    def _register(self, name: str, value: Any, kind: type) -> None:
        """Make a value an attribute that counts as a parameter, a buffer or a sub-module.

        Raises TypeError for another kind of value, ValueError for a name that cannot be a key.
        """
        if not (value is None or isinstance(value, kind)):
            raise TypeError(
                f"{type(self).__name__}.{name}: expected a {kind.__name__} or None, got "
                f"{type(value).__name__}"
            )
        if not name or "." in name:
            raise ValueError(f"{type(self).__name__}: {name!r} cannot name a sub-module or tensor")
        if hasattr(type(self), name):
            raise ValueError(
                f"{type(self).__name__}: {name!r} is an attribute of the class, which would hide "
                "the sub-module or tensor; choose another name"
            )
        if self._kinds.get(name) is not kind:
            self._kinds.pop(name, None)  # the last of its kind from now on
            self._kinds[name] = kind
        self.__dict__[name] = value

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Add a parameter; None keeps the name without a tensor."""
        self._register(name, parameter, Parameter)

    def register_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Add a tensor that is part of the state but not trained, as running statistics are."""
        self._register(name, tensor, Tensor)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a sub-module under a name."""
        self._register(name, module, Module)

    # -- calling -----------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._forward_pre_hooks:
            for hook in tuple(self._forward_pre_hooks.values()):
                changed = hook(self, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        output = self.forward(*args, **kwargs)
        if self._forward_hooks:
            for hook in tuple(self._forward_hooks.values()):
                changed = hook(self, args, output)
                if changed is not None:
                    output = changed
        return output

    def register_forward_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(module, args, output)` after forward; a result replaces the output.

        `handle.remove()` of what is returned removes the hook.
        """
        return Handle(self._forward_hooks, hook)

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(module, args)` before forward; a result replaces the arguments."""
        return Handle(self._forward_pre_hooks, hook)

    # -- walking the tree --------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Direct sub-modules with their names."""
        for name, module in self._modules.items():
            if module is not None:
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules that are attributes of this one."""
        for _, module in self.named_children():
            yield module

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, parents first."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            name, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            below = [(f"{name}.{n}" if name else n, m) for n, m in module.named_children()]
            stack.extend(reversed(below))

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        for _, module in self.named_modules():
            yield module

    def _named(self, kind: type) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, tensor in module._registered(kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield (f"{prefix}.{name}" if prefix else name), tensor

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their full names, each once."""
        return self._named(Parameter)  # type: ignore[return-value]

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, of the modules below too, each once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers with their full names, each once."""
        return self._named(Tensor)

    def buffers(self) -> Iterator[Tensor]:
        """All tensors that are state and no parameters, such as running statistics."""
        for _, tensor in self.named_buffers():
            yield tensor

    def get_submodule(self, name: str) -> Module:
        """The module of a full name such as `layer1.0.conv1`; "" is this one."""
        module: Module = self
        for part in name.split(".") if name else ():
            found = module._modules.get(part)
            if found is None:
                guess = nearest(part, module._modules)
                hint = f"; did you mean {guess!r}?" if guess else ""
                raise AttributeError(f"{type(self).__name__} has no sub-module {name!r}{hint}")
            module = found
        return module

    def apply(self, function: Callable[[Module], None]) -> Self:
        """Call `function` on every module, children first; returns self."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    # -- state -------------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> OrderedDict[str, Tensor]:
        """Parameters and buffers by full name, in PyTorch's order, sharing memory.

        What several names share is there under each of them. prefix: put before every name.
        """
        state: OrderedDict[str, Tensor] = OrderedDict()
        for table in (self._parameters, self._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    state[prefix + name] = tensor.detach()
        for name, module in self.named_children():
            state.update(module.state_dict(f"{prefix}{name}."))
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy values (Tensors or arrays) into the parameters and buffers of the same names.

        Checked before anything is changed: raises ValueError that lists every wrong shape or type
        and, if `strict`, every missing and unexpected name.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        problems = []
        arrays = {}
        for name, target in own.items():
            if name in state:
                array = arrays[name] = _array(state[name])
                if array.dtype.kind not in "fiub" and not is_floating(array.dtype):
                    problems.append(f"{name}: expected numbers, got {array.dtype}")
                elif array.shape != target.shape:
                    shapes = shape_text(target.shape), shape_text(array.shape)
                    problems.append("{}: expected {}, got {}".format(name, *shapes))
        if strict and missing:
            problems.append(f"missing: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected: {', '.join(unexpected)}")
        if problems:
            listed = "\n  ".join(problems)
            raise ValueError(f"load_state_dict: {type(self).__name__} does not fit:\n  {listed}")
        for name, array in arrays.items():
            own[name].copy_(array)
        return LoadResult(missing, unexpected)

    def train(self, mode: bool = True) -> Self:
        """Training behaviour (batch statistics, dropout) here and below; returns self."""
        self.training = bool(mode)
        for module in self.children():
            module.train(mode)
        return self

    def eval(self) -> Self:
        """Evaluation behaviour here and below; returns self."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all parameters' gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Switch the training of all parameters on or off; returns self."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def to(self, *targets: Any) -> Self:
        """Move to a device ("cuda") or convert floating-point tensors to a dtype; returns self.

        Parameters stay the objects they are, so an optimiser keeps them; gradients go along. On a
        device, convolutions' weights lie in channels-last memory, as its kernels read them.
        Nothing is changed if a tensor cannot be moved.

        Raises TypeError for a dtype that is not floating point, and as `Tensor.to` does.
        """
        devices = [t for t in targets if names_device(t)]
        dtypes = [as_dtype(t) for t in targets if not names_device(t)]
        for dtype in dtypes:
            if not is_floating(dtype):
                raise TypeError(f"to: modules are of floating point, got {dtype}")

        def moved(tensor: Tensor) -> Tensor:
            wanted = (*devices, *(dtypes if is_floating(tensor.dtype) else ()))
            found = tensor.detach().to(*wanted)
            if tensor.device == "cpu" != found.device and found.ndim == 4:
                found = Tensor(to_nchw(to_nhwc(found._data)))
            return found

        changes = []
        for tensor in (*self.parameters(), *self.buffers()):
            data = moved(tensor)
            if data._data is not tensor._data:
                changes.append((tensor, data, None if tensor.grad is None else moved(tensor.grad)))
        for tensor, data, gradient in changes:
            tensor.data = data
            data._buffer.exposed = False  # nobody else holds what was just made
            tensor.grad = gradient
        return self

    def cpu(self) -> Self:
        """To the host."""
        return self.to("cpu")

    def cuda(self, number: int = 0) -> Self:
        """To the CUDA device of this number."""
        return self.to(f"cuda:{number}")

    def float(self) -> Self:
        """To float32."""
        return self.to(np.float32)

    def double(self) -> Self:
        """To float64, as gradient checks want it."""
        return self.to(np.float64)

    # -- showing -----------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The settings shown between the brackets of repr."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self.named_children()
        ]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        body = "\n  ".join(lines)
        return f"{type(self).__name__}({self.extra_repr()}\n  {body}\n)"


def _array(value: Any) -> Any:
    """What a state holds, as an array of where it lies."""
    if isinstance(value, Tensor):
        return value._data
    return value if is_array(value) else np.asarray(value)


class Sequential(Module):
    """Modules called one after the other."""

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        named: Iterable[tuple[str, Any]]
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named = modules[0].items()
        else:
            named = ((str(i), module) for i, module in enumerate(modules))
        for name, module in named:
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: expected Modules, got {type(module).__name__}")
            self.add_module(name, module)

    def forward(self, x: Any) -> Any:
        for module in self._modules.values():
            x = module(x)
        return x

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        modules = list(self._modules.items())
        if isinstance(index, slice):
            return type(self)(dict(modules[index]))
        return modules[index][1]

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns self."""
        self.add_module(str(len(self)), module)
        return self


class ModuleList(Module):
    """A list of modules that are registered; it does not say how to call them."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns self. Raises TypeError for anything else."""
        if not isinstance(module, Module):
            raise TypeError(f"ModuleList: expected a Module, got {type(module).__name__}")
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns self."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        modules = list(self._modules.values())
        return type(self)(modules[index]) if isinstance(index, slice) else modules[index]
