"""What all optimisers share: parameter groups, gradients, state to save."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from minires._names import unknown
from minires.autograd import Tensor
from minires.kernels.arrays import active, device_of, is_array, to_device, to_host, xp_of
from minires.kernels.geometry import shape_text

Group = dict[str, Any]


class Optimizer:
    """Changes parameters by their gradients. Subclasses define `update` and `check`.

    params: tensors; or dicts, each with "params" and the settings in which it differs.

    param_groups: a dict for each group: "params", a list, and the settings, which may be changed
        between steps. state: what is kept for each parameter that has had a gradient.

    Raises ValueError for an empty list, a tensor that is no leaf or that comes twice, an unknown
    or impossible setting, and TypeError for what is no tensor.
    """

    arrays: ClassVar[tuple[str, ...]] = ()
    """The entries of a parameter's state that are arrays of its shape."""

    capturable: ClassVar[bool] = False
    """Whether a captured step may be replayed: what changes from step to step lies on the device,
    written there by `upload`."""

    def __init__(self, params: Iterable[Tensor] | Iterable[Group], **settings: Any) -> None:
        if isinstance(params, Tensor | Mapping) or not isinstance(params, Iterable):
            hint = "put it into a list" if isinstance(params, Iterable) else "pass its parameters()"
            raise TypeError(
                f"{self._name}: expected a list of tensors or of groups, got one "
                f"{type(params).__name__}; {hint}"
            )
        self.defaults = settings
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, dict[str, Any]] = {}
        self._scratch: dict[tuple[str, Any, int], Any] = {}
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError(f"{self._name}: no parameters to optimise")
        grouped = isinstance(entries[0], Mapping)
        for group in entries if grouped else [{"params": entries}]:
            self.add_param_group(group)

    def check(self, group: Group) -> None:
        """Raise ValueError for settings that make no sense."""

    def update(self, parameter: Tensor, gradient: Any, group: Group) -> None:
        """Change `parameter._data` in place; the gradient, on the same device, is only read."""
        raise TypeError(f"{self._name} defines no update(parameter, gradient, group)")

    @property
    def _name(self) -> str:
        return type(self).__name__

    # -- parameters --------------------------------------------------------------------------

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with settings of their own: `{"params": tensors, "lr": 0.01}`."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"{self._name}: a group is a dict with 'params', got {group!r}")
        for name in group:
            if name != "params" and name not in self.defaults:
                raise ValueError(unknown(f"{self._name} setting", name, self.defaults))
        given = group["params"]
        params = [given] if isinstance(given, Tensor) else list(given)
        if not params:
            raise ValueError(f"{self._name}: a group without parameters")
        known = {id(p) for g in self.param_groups for p in g["params"]}
        for position, parameter in enumerate(params):
            if not isinstance(parameter, Tensor):
                hint = "; pass parameters(), not named_parameters()"
                raise TypeError(
                    f"{self._name}: parameter {position} is a {type(parameter).__name__}, expected "
                    f"a Tensor{hint if isinstance(parameter, tuple) else ''}"
                )
            if not parameter.is_leaf:
                raise ValueError(
                    f"{self._name}: parameter {position} ({shape_text(parameter.shape)}) is the "
                    "result of an operation; only leaves can be optimised"
                )
            if id(parameter) in known:
                raise ValueError(
                    f"{self._name}: parameter {position} ({shape_text(parameter.shape)}) is given "
                    "twice; it would be changed twice in a step"
                )
            known.add(id(parameter))
        added = {"params": params, **self.defaults, **{k: group[k] for k in group}}
        added["params"] = params
        self.check(added)
        self.param_groups.append(added)

    @property
    def lr(self) -> float:
        """The learning rate. Assigning sets it in all groups; reading needs them to agree."""
        rates = [group["lr"] for group in self.param_groups]
        if any(rate != rates[0] for rate in rates):
            raise ValueError(
                f"{self._name}: the groups have different learning rates {rates}; read them from "
                "param_groups"
            )
        return float(rates[0])

    @lr.setter
    def lr(self, value: float) -> None:
        non_negative(self._name, lr=value)
        for group in self.param_groups:
            group["lr"] = float(value)

    # -- a step ------------------------------------------------------------------------------

    def step(self) -> None:
        """Change every parameter that has a gradient; the others stay, and so does their state."""
        for group in self.param_groups:
            changed: list[tuple[Tensor, Any]] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad._data
                if gradient.shape != parameter._data.shape:
                    raise ValueError(
                        f"{self._name}: a parameter of shape {shape_text(parameter.shape)} has a "
                        f"gradient of shape {shape_text(gradient.shape)}"
                    )
                if type(gradient) is not type(parameter._data):
                    raise ValueError(
                        f"{self._name}: a parameter on {parameter.device} has a gradient on "
                        f"{device_of(gradient)}; call zero_grad() after moving a model"
                    )
                changed.append((parameter, gradient))
            self.update_all(changed, group)
            for parameter, _ in changed:
                parameter._buffer.version += 1

    def update_all(self, changed: list[tuple[Tensor, Any]], group: Group) -> None:
        """Change the parameters of a group that have gradients, one after the other.

        Raises CaptureError while a graph is captured: settings are numbers of the host here.
        """
        if changed and type(changed[0][0]._data) is not np.ndarray:
            from minires.kernels.cuda import graph

            if graph.active() is not None:
                raise graph.CaptureError(f"{self._name} keeps numbers of its steps on the host")
        for parameter, gradient in changed:
            if type(parameter._data) is np.ndarray:
                self.update(parameter, gradient, group)
                continue
            with active(parameter._data):
                self.update(parameter, gradient, group)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def upload(self) -> None:
        """Write settings that a captured step reads from device memory; called before a replay."""

    def scratch(self, like: Any, slot: int = 0) -> Any:
        """An array of the shape of `like` to compute in; the next parameter gets the same memory.

        slot: for a subclass that needs several at once.
        """
        key = (device_of(like), like.dtype, slot)
        held = self._scratch.get(key)
        if held is None or held.size < like.size:
            held = self._scratch[key] = xp_of(like).empty(like.size, like.dtype)
        return held[: like.size].reshape(like.shape)

    def held(self, parameter: Tensor, name: str) -> Any:
        """An array of a parameter's state, brought along if the parameter was moved since."""
        entry = self.state[parameter]
        array = entry[name]
        if type(array) is type(parameter._data) is np.ndarray:
            return array
        if type(array) is not type(parameter._data) or device_of(array) != parameter.device:
            entry[name] = to_device(array, parameter.device)
        return entry[name]

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Settings and state, as PyTorch arranges them: plain numbers and arrays, no tensors.

        {"state": {0: {"momentum_buffer": array}, ...}, "param_groups": [{"lr": ..., "params":
        [0, ...]}]}: parameters are numbered in the order of the groups. The arrays are NumPy's.
        On the CPU they share memory with the optimiser: copy or write them before the next step.
        """
        numbers = {id(p): i for i, p in enumerate(self._parameters())}
        groups = [
            {**group, "params": [numbers[id(p)] for p in group["params"]]}
            for group in self.param_groups
        ]
        state = {
            numbers[id(p)]: {k: to_host(v) if is_array(v) else v for k, v in entry.items()}
            for p, entry in self.state.items()
        }
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, copying the arrays.

        Checked before anything is changed: raises ValueError if groups, parameters, settings or
        shapes do not fit.
        """
        groups = state["param_groups"]
        ours = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in groups]
        if ours != theirs:
            raise ValueError(
                f"load_state_dict: {self._name} has groups of {ours} parameters, the state has "
                f"{theirs}"
            )
        loaded_groups = []
        for group, saved in zip(self.param_groups, groups, strict=True):
            wrong = set(saved) ^ set(group)
            if wrong:
                raise ValueError(
                    f"load_state_dict: {self._name} and the state differ in the settings "
                    f"{', '.join(sorted(wrong))}; was it saved by another optimiser?"
                )
            loaded = {**saved, "params": group["params"]}
            self.check(loaded)
            loaded_groups.append(loaded)
        by_number = {
            int(number): parameter
            for group, saved in zip(self.param_groups, groups, strict=True)
            for number, parameter in zip(saved["params"], group["params"], strict=True)
        }
        loaded_state = {}
        for number, entry in state["state"].items():
            if int(number) not in by_number:
                raise ValueError(f"load_state_dict: state for parameter {number}, which is none")
            parameter = by_number[int(number)]
            loaded_state[parameter] = {
                name: self._loaded(name, value, parameter, int(number))
                for name, value in entry.items()
            }
        for group, loaded in zip(self.param_groups, loaded_groups, strict=True):
            group.update(loaded)
        self.state = loaded_state

    def _loaded(self, name: str, value: Any, parameter: Tensor, number: int) -> Any:
        if name not in self.arrays:
            return value
        given = to_host(value) if is_array(value) else value
        array = np.array(given, dtype=parameter.dtype)
        if array.shape != parameter.shape:
            raise ValueError(
                f"load_state_dict: {name} of parameter {number}: expected "
                f"{shape_text(parameter.shape)}, got {shape_text(array.shape)}"
            )
        if parameter.device == "cpu":
            return array
        with active(parameter._data):
            there = xp_of(parameter._data).empty_like(parameter._data)  # in its memory order
            there[...] = to_device(array, parameter.device)
        return there

    def _parameters(self) -> Iterable[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def __repr__(self) -> str:
        lines = []
        for group in self.param_groups:
            numbers = sum(p.numel() for p in group["params"])
            settings = ", ".join(f"{k}={v}" for k, v in group.items() if k != "params")
            lines.append(f"  {len(group['params'])} tensors, {numbers:,} numbers: {settings}")
        return "\n".join([f"{self._name}(", *lines, ")"])


def non_negative(who: str, **values: float) -> None:
    """Raise TypeError for what is no number, ValueError for one that is negative or not finite."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{who}: {name} takes a number, got {value!r}")
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{who}: {name} must be a number from 0 up, got {value}")
