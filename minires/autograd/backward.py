"""Reverse-mode differentiation: one walk over the tape, newest operation first.

Every node is younger than the nodes that made its inputs, so taking nodes from a heap by age,
newest first, visits each one only when all its output's consumers have contributed. No recursion
and no separate sort: a chain of any depth works.

Gradients are shared freely inside one walk (an addition hands the same array to both sides) and
treated as read-only unless the walk owns them. Only what leaves it, into `.grad` or to a caller of
`grad()`, is made sure to own its memory: at a residual join, two tensors must never share a buffer.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from minires.autograd.buffer import Rebuilt
from minires.autograd.hooks import Hooks
from minires.autograd.tape import Function, describe, enable_grad, no_grad
from minires.autograd.tensor import Tensor
from minires.kernels.arrays import active, arrayed, is_array, is_floating, xp_of
from minires.kernels.operations import add

Key = tuple[int, int]  # (id of a node or leaf, output index)
LARGE = 1 << 16  # elements


class _Pending:
    """A gradient being summed. `owned`: nobody else sees this array, so it may be added into.

    uses: how many uses of the tensor have added to it; what a walk starts from is none.
    """

    __slots__ = ("owned", "uses", "value")

    def __init__(self, value: Tensor, owned: bool, uses: int) -> None:
        self.value = value
        self.owned = owned
        self.uses = uses

    def add(self, value: Tensor, owned: bool, create_graph: bool) -> None:
        if create_graph:
            self.value = self.value + value
            self.owned = True
        elif value._data.size >= LARGE:  # worth all threads
            self.value, self.owned = Tensor._wrap(add(self.value._data, value._data)), True
        elif self.owned:
            np.add(self.value._data, value._data, out=self.value._data)
        elif owned:
            np.add(self.value._data, value._data, out=value._data)
            self.value, self.owned = value, True
        else:
            self.value = Tensor._wrap(arrayed(self.value._data + value._data))
            self.owned = True

    def own(self) -> Tensor:
        """The gradient in memory of its own."""
        return self.value if self.owned else self.value.clone()


class _Walk:
    """One backward pass."""

    def __init__(
        self, retain_graph: bool, create_graph: bool, wanted: Collection[Key] | None = None
    ) -> None:
        self.retain_graph = retain_graph
        self.create_graph = create_graph
        self.wanted = wanted or ()
        self.fills_grad = wanted is None  # backward() writes into `.grad`, grad() must not
        self.pending: dict[int, list[_Pending | None]] = {}  # by node: one for each output
        self.heap: list[tuple[int, Function]] = []
        self.leaves: dict[Tensor, _Pending] = {}
        self.found: dict[Key, _Pending] = {}
        self.useful: set[int] | None = None

    def receive(self, edge: Any, value: Tensor, owned: bool, uses: int = 1) -> None:
        """Add a gradient to what an edge has collected."""
        if type(edge) is tuple:
            node, index = edge
            collected = self.pending.get(id(node))
            if collected is None:
                collected = self.pending[id(node)] = [None] * len(node.outputs)
                heapq.heappush(self.heap, (-node.sequence, node))
            pending = collected[index]
            if pending is None:
                collected[index] = _Pending(value, owned, uses)
                return
        else:
            pending = self.leaves.get(edge)
            if pending is None:
                self.leaves[edge] = _Pending(value, owned, uses)
                return
        pending.add(value, owned, self.create_graph)
        pending.uses += uses

    def run(self) -> None:
        with enable_grad() if self.create_graph else no_grad():
            while self.heap:
                _, node = heapq.heappop(self.heap)
                self.visit(node)
            for leaf, pending in self.leaves.items():
                if leaf._hooks:
                    _apply_hooks(leaf._hooks, pending, leaf.shape, leaf.dtype)
                if self.wanted and (id(leaf), 0) in self.wanted:
                    self.found[(id(leaf), 0)] = pending

    def visit(self, node: Function) -> None:
        collected = self.pending.pop(id(node))
        watched = node.hooks or node.retained or self.wanted
        gradients: list[Tensor] = []
        for index, pending in enumerate(collected):
            if pending is None:  # an output nothing was computed from
                gradients.append(_nothing(node.outputs[index], collected))
                continue
            if watched:
                self.show(node, index, pending)
            gradients.append(pending.value)
        if self.useful is not None and id(node) not in self.useful:
            return
        edges, needs = node.edges, node.needs
        if edges is None:
            raise RuntimeError(
                f"backward: the graph was freed by an earlier backward (at {node.name}). Compute "
                "the loss again, or pass retain_graph=True to the earlier call."
            )
        if self.useful is not None:
            needs = tuple([_leads_to(self.wanted, edge, self.useful) for edge in edges])
        joined = None
        if node.adds and needs[0]:
            joined = self.pending_join(edges[0])
            # None too: a backward that was interrupted may have left something.
            node.waiting = None if joined is None else joined.value._data
            node.completes = self.completed_by_one(edges[0], joined)
        if type(gradients[0]._data) is np.ndarray:
            results = node.differentiate(gradients, needs)
        else:
            with active(gradients[0]._data):
                results = node.differentiate(gradients, needs)
        if node.adds:
            node.completes = None
        if len(results) != len(edges):
            raise RuntimeError(
                f"{node.name}.backward returned {len(results)} gradients for {len(edges)} inputs"
            )
        returns_new = node.returns_new
        for position, result in enumerate(results):
            if result is None or not needs[position]:
                continue
            edge, array = edges[position], result._data
            if type(edge) is tuple:
                shape, dtype = edge[0].outputs[edge[1]]
            else:
                shape, dtype = edge._data.shape, edge._data.dtype
            if array.dtype is not dtype or array.shape != shape:
                result = _fitted(result, shape, dtype, node, position)
            if position == 0 and joined is not None:
                if node.waiting is None:  # the sum, not another summand
                    joined.value = result
                    joined.uses += 1
                    continue
                node.waiting = None
            # The gradient of what was consumed only once is never added to: no need to know.
            owned = returns_new or (
                not (type(edge) is tuple and edge[0].consumers == 1)
                and _is_fresh(result._data, gradients, results, node)
            )
            self.receive(edge, result, owned)
        if not self.retain_graph:
            node.release()

    def pending_join(self, edge: Any) -> _Pending | None:
        """What has been collected for an edge, if it is large and nobody else's."""
        if type(edge) is tuple:
            node, index = edge
            collected = self.pending.get(id(node))
            pending = None if collected is None else collected[index]
        else:
            pending = self.leaves.get(edge)
        if pending is None or not pending.owned or self.create_graph:
            return None
        return pending if pending.value._data.size >= LARGE else None

    def completed_by_one(self, edge: Any, joined: _Pending | None) -> Function | None:
        """The node of an edge, if one more use completes its gradient and nobody else is shown it.

        joined: what that would be added to; if there is something else, it is not the last step.
        """
        if self.create_graph or self.is_shown(edge):
            return None
        node: Function = edge[0]
        if node.passes_on and (not node.edges or self.is_shown(node.edges[0])):
            return None
        if joined is None:
            return node if node.consumers == 1 and id(node) not in self.pending else None
        return node if node.consumers == joined.uses + 1 else None

    def is_shown(self, edge: Any) -> bool:
        """Whether anybody else sees the gradient of an edge, or of one like it."""
        if type(edge) is not tuple:
            return True
        node = edge[0]
        if node.hooks or node.retained or node.released or len(node.outputs) > 1:
            return True
        return bool(self.wanted) and (id(node), 0) in self.wanted

    def show(self, node: Function, index: int, pending: _Pending) -> None:
        """The whole gradient of an output to those who asked for it."""
        if node.hooks is not None:
            _apply_hooks(node.hooks.get(index), pending, *node.outputs[index])
        if node.retained is not None and self.fills_grad:
            _retain(node.retained.get(index), pending.value)
        if (id(node), index) in self.wanted:
            self.found[(id(node), index)] = pending
            pending.owned = False


def _fitted(
    result: Tensor, shape: tuple[int, ...], dtype: Any, node: Function, position: int
) -> Tensor:
    """A gradient in the dtype of its input. Raises RuntimeError if it has another shape, TypeError
    if the input's dtype has no gradients."""
    if result.shape != shape:
        raise RuntimeError(
            f"{node.name}.backward returned a gradient of shape {result.shape} for input "
            f"{position} of shape {shape}"
        )
    if result.dtype == dtype:
        return result
    if not is_floating(dtype):
        raise TypeError(
            f"{node.name}: input {position} is {dtype} and cannot have a gradient; "
            "requires_grad is for floating-point tensors"
        )
    return result.astype(dtype)


def _nothing(output: tuple[tuple[int, ...], Any], others: list[_Pending | None]) -> Tensor:
    """The gradient of an output that nothing was computed from, where the others' lie: zeros."""
    like = next(other for other in others if other is not None).value._data
    with active(like):
        return Tensor._wrap(xp_of(like).zeros(*output))


def _is_fresh(
    array: Any, gradients: list[Tensor], results: tuple[Any, ...], node: Function
) -> bool:
    """Whether backward made this array for one input alone, so that it may be added into."""
    if not node.of_engine:  # it may hand out an array that it keeps
        return False
    # Arrays are told apart by who owns their memory; only views of one array, and memory that no
    # array owns, are compared by their extents.
    base = array.base
    owner = array if base is None else base
    foreign = base is not None and getattr(base, "base", base) is not None
    for tensor in gradients:
        other = tensor._data
        if (foreign or other is owner or other.base is owner) and _overlap(array, other):
            return False
    itself = False
    for tensor in results:  # the engine's operations return one array twice, and no parts of one
        if tensor is not None and tensor._data is array:
            if itself:
                return False
            itself = True
    for other in node._saved.values() if node._saved else ():
        if type(other) is tuple:
            other = other[0]
        elif type(other) is Rebuilt:
            other = other.kept()
            if other is None:
                continue
        if (foreign or other is owner or other.base is owner) and _overlap(array, other):
            return False
    return True


def _overlap(a: Any, b: Any) -> bool:
    return a is b or bool(np.may_share_memory(a, b))


def _apply_hooks(hooks: Hooks | None, pending: _Pending, shape: Any, dtype: Any) -> None:
    for hook in tuple(hooks.values()) if hooks else ():
        pending.owned = False  # the hook may keep what it is shown
        replacement = hook(pending.value)
        if replacement is None:
            continue
        if not isinstance(replacement, Tensor) or replacement.shape != tuple(shape):
            raise ValueError(
                f"hook: expected None or a Tensor of shape {tuple(shape)}, got "
                f"{describe(replacement) if isinstance(replacement, Tensor) else replacement!r}"
            )
        pending.value = replacement.astype(dtype)


def _seed(output: Tensor, gradient: Any, what: str) -> Tensor:
    """The gradient a walk starts from, checked."""
    if not isinstance(output, Tensor):
        raise TypeError(f"{what}: expected a Tensor, got {type(output).__name__}")
    if not output.requires_grad:
        raise RuntimeError(
            f"{what}: this tensor does not require gradients; no input had requires_grad=True, or "
            "it was computed inside no_grad()"
        )
    if gradient is None:
        if output.size != 1:
            raise RuntimeError(
                f"{what}: the output has {describe(output)}, and only a scalar has a gradient of "
                "its own; reduce it to a scalar, or pass the gradient reaching it"
            )
        with active(output._data):
            return Tensor._wrap(xp_of(output._data).ones_like(output._data))
    if not isinstance(gradient, Tensor):
        gradient = Tensor(gradient, dtype=output.dtype)
        if gradient.ndim == 0:
            gradient = gradient.to(output.device)
    if gradient.shape != output.shape:
        raise ValueError(f"{what}: gradient has shape {gradient.shape}, expected {output.shape}")
    if gradient.device != output.device:
        raise ValueError(
            f"{what}: the gradient lives on {gradient.device} and the output on {output.device}; "
            f"bring it there with .to({output.device!r})"
        )
    return gradient if gradient.dtype == output.dtype else gradient.astype(output.dtype)


def backward(
    outputs: Sequence[Tensor],
    gradients: Sequence[Any],
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Accumulate into `.grad` of every leaf; see `Tensor.backward`."""
    walk = _Walk(create_graph if retain_graph is None else retain_graph, create_graph)
    for output, gradient in zip(outputs, gradients, strict=True):
        walk.receive(output._edge(), _seed(output, gradient, "backward"), owned=False, uses=0)
    walk.run()
    with enable_grad() if create_graph else no_grad():
        for leaf, pending in walk.leaves.items():
            leaf.grad = pending.own() if leaf.grad is None else leaf.grad + pending.value


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` with respect to `inputs`, without touching any `.grad`.

    outputs: a tensor or several, whose gradients are added up.
    inputs: leaves or intermediate tensors.
    grad_outputs: gradient reaching each output; may be left out for scalars.
    allow_unused: return None for an input the outputs do not depend on, instead of raising.

    Only the part of the graph between them is walked. Raises RuntimeError as `backward` does.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif isinstance(grad_outputs, Tensor) or is_array(grad_outputs):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad: {len(outputs)} outputs but {len(grad_outputs)} grad_outputs")
    keys: list[Key] = []
    for position, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"grad: input {position} is no Tensor but {type(tensor).__name__}")
        edge = tensor._edge()
        if edge is None:
            raise RuntimeError(f"grad: input {position} does not require gradients")
        keys.append((id(edge), 0) if isinstance(edge, Tensor) else (id(edge[0]), edge[1]))

    retain = create_graph if retain_graph is None else retain_graph
    walk = _Walk(retain, create_graph, set(keys))
    seeds = [_seed(o, g, "grad") for o, g in zip(outputs, grad_outputs, strict=True)]
    walk.useful = _useful_nodes(outputs, set(keys))
    for output, seed in zip(outputs, seeds, strict=True):
        walk.receive(output._edge(), seed, owned=False, uses=0)
    walk.run()

    results: list[Tensor | None] = []
    given: set[Key] = set()
    for position, key in enumerate(keys):
        pending = walk.found.get(key)
        if pending is None:
            if not allow_unused:
                raise RuntimeError(
                    f"grad: the outputs do not depend on input {position}; pass allow_unused=True "
                    "to get None for it"
                )
            results.append(None)
            continue
        results.append(pending.value.clone() if key in given else pending.own())
        given.add(key)
    return tuple(results)


def _useful_nodes(outputs: Sequence[Tensor], wanted: set[Key]) -> set[int]:
    """Ids of the nodes below `outputs` from which a wanted tensor can be reached."""
    nodes: dict[int, Function] = {}
    stack = [output._node for output in outputs if output._node is not None]
    while stack:
        node = stack.pop()
        if id(node) in nodes:
            continue
        nodes[id(node)] = node
        stack.extend(edge[0] for edge in node.edges or () if isinstance(edge, tuple))
    useful: set[int] = set()
    for node in sorted(nodes.values(), key=lambda n: n.sequence):
        if node.released:  # anything may lie below a freed node: let the walk report it
            if not any((id(node), i) in wanted for i in range(len(node.outputs))):
                useful.add(id(node))
            continue
        if any(_leads_to(wanted, edge, useful) for edge in node.edges or ()):
            useful.add(id(node))
    return useful


def _leads_to(wanted: Collection[Key], edge: Any, useful: set[int]) -> bool:
    """Whether an edge ends in a wanted tensor, or in a node from which one can be reached."""
    if edge is None:
        return False
    if isinstance(edge, Tensor):
        return (id(edge), 0) in wanted
    node, index = edge
    return (id(node), index) in wanted or id(node) in useful


def _retain(reference: weakref.ref[Tensor] | None, gradient: Tensor) -> None:
    """Accumulate into the `.grad` of an intermediate tensor that asked for it, if it still lives.

    After its hooks, whenever they were registered.
    """
    tensor = reference() if reference is not None else None
    if tensor is not None:
        tensor.grad = gradient.clone() if tensor.grad is None else tensor.grad + gradient
