"""What this package reads of PyTorch beyond its documented interface, in one place.

Each function below wraps one private or undocumented part of PyTorch, and its docstring says what PyTorch documents instead.
``tests/unit/engine/test_torch_internals.py`` has one test for each. Where a new version of PyTorch fails such a test, this file
and the test's docstring are the place to start; no other file of the package touches a private name
(``tests/guards/test_private_torch.py``).

Names of autograd nodes, such as ``AddmmBackward0``, are not promised either. Tables of operator names lie next to the code that
uses them (``engine/capture/operators.py``, and measures that tell operators apart), and the same test file checks that PyTorch
still gives each of these names to a node.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, FunctionMeta
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "PARAMETRIZED",
    "WEIGHT_NORM",
    "OutputMetadata",
    "TorchDispatchMode",
    "WeakTensorKeyDictionary",
    "apply_node",
    "buffer_table",
    "compiler_is_loaded",
    "function_transforms_are_active",
    "inputs_of_forward",
    "intercepted_custom_functions",
    "is_batch_norm",
    "is_custom",
    "is_lazy",
    "is_leaf_node",
    "is_made_by",
    "is_unsupported_here",
    "leaf_of",
    "next_sequence_number",
    "node_name",
    "output_metadata",
    "parameter_table",
    "preserved_version",
    "saved",
    "sequence_number",
    "tables_of",
    "version_of",
    "without_dispatch",
    "without_torch_functions",
]


# Autograd nodes ---------------------------------------------------------------------------------------------------
class OutputMetadata(Protocol):
    """Shape, type and device of one tensor of the forward pass, which may no longer exist."""

    @property
    def shape(self) -> Sequence[int]:
        """Sizes of its dimensions."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its numbers."""

    @property
    def device(self) -> torch.device:
        """Where it was computed."""


def output_metadata(node: Node) -> Sequence[OutputMetadata]:
    """Return the metadata of the tensors that a node's operator returned, by output number.

    Reads ``Node._input_metadata``: the outputs of the forward pass are the inputs of the backward pass. PyTorch documents no way
    to learn the shape of an edge whose tensor is gone.
    """
    found: Sequence[OutputMetadata] = node._input_metadata
    return found


def sequence_number(node: Node) -> int:
    """Return the number that autograd gave the node when the forward pass created it; it grows in program order.

    Reads ``Node._sequence_nr``. A leaf's node reports the largest number there is. PyTorch documents the number only as what
    the profiler shows.
    """
    return int(node._sequence_nr())


def next_sequence_number() -> int:
    """Return the sequence number that the next node of this thread will get.

    Reads ``torch._C._autograd._get_sequence_nr``. PyTorch documents nothing in its place (since 2.14 a hook on the creation of
    nodes, which would be called for each of them).
    """
    return int(torch._C._autograd._get_sequence_nr())


def node_name(node: Node) -> str:
    """Return the name of a node's class, such as ``AddmmBackward0``.

    PyTorch documents ``Node.name()``, and promises no names: a new version may split or rename an operator.
    """
    return type(node).__name__


def is_leaf_node(node: Node) -> bool:
    """Whether a node stands for a leaf, such as a parameter, in whose ``.grad`` it collects the gradient.

    Compares the name ``AccumulateGrad``, which PyTorch's documentation shows and does not promise.
    """
    return node_name(node) == "AccumulateGrad"


def leaf_of(node: Node | None) -> Tensor | None:
    """Return the tensor that a leaf's node stands for; None for every other node.

    Reads ``AccumulateGrad.variable``, which PyTorch does not document.
    """
    if node is None or not is_leaf_node(node):
        return None
    leaf: Tensor = node.variable  # type: ignore[attr-defined]
    return leaf


def saved(node: Node, name: str, *, default: Any = None) -> Any:
    """Return an argument or a tensor that a node has kept for its backward pass, or the default if it keeps none of this name.

    Reads ``Node._saved_NAME``. PyTorch's tutorials show these attributes, and promise neither their names nor their values.

    Raises:
        RuntimeError: The tensor has been overwritten since, or the graph was freed.
    """
    return getattr(node, f"_saved_{name}", default)


def apply_node(node: Node, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Call a node with the gradients of its outputs, without the hooks on it, and return those of what it reads.

    PyTorch documents ``torch.autograd.grad`` alone, which runs the hooks. Nodes of PyTorch's own operators can be called; the
    node of a ``torch.autograd.Function`` has a method ``apply``.

    Returns:
        A tensor for each of ``node.next_functions``, or None for no gradient.
    """
    call: Callable[..., Any] = node if callable(node) else node.apply  # type: ignore[attr-defined]
    with torch.no_grad():
        found = call(*gradients)
    return found if isinstance(found, tuple) else (found,)


# torch.autograd.Function ------------------------------------------------------------------------------------------
def is_custom(node: Node) -> bool:
    """Whether a node is that of a ``torch.autograd.Function`` written in Python.

    Its class derives from ``BackwardCFunction``, which is exported and not documented.
    """
    return isinstance(node, BackwardCFunction)


def is_made_by(tensor: Tensor, function: type[Function]) -> bool:
    """Whether a tensor is a result of ``function.apply``; an in-place function's result on a view counts as well.

    Reads ``_forward_cls`` of the node's class. PyTorch documents no way from a node to its function.
    """
    if tensor.grad_fn is None:
        return False
    return (
        getattr(type(tensor.grad_fn), "_forward_cls", None) is function or type(tensor.grad_fn).__name__ == "CopySlices"
    )


class _Stand:
    """Stands for a static method of a ``torch.autograd.Function`` while calls of it are intercepted.

    An object with the function's signature and code, both of which ``apply`` reads to put keyword arguments in order.
    """

    def __init__(self, original: Callable[..., Any], call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._call = call
        if hasattr(original, "__code__"):
            self.__code__ = original.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


@contextmanager
def intercepted_custom_functions(
    forward: Callable[[type[Function], Callable[..., Any], tuple[Any, ...]], Any],
    setup_context: Callable[[Callable[..., Any], tuple[Any, ...]], Any],
) -> Iterator[None]:
    """Hand every call of the ``forward`` and the ``setup_context`` of a ``torch.autograd.Function`` over to a caller.

    ``Function.apply`` itself cannot be intercepted. Models keep bound references to it (``swish = Swish.apply``), and since
    PyTorch 2.14 these are functions of the C++ extension. In every version ``apply`` looks ``forward`` and then, where a class
    overrides it, ``setup_context`` up on the class, calls them without gradients, and then gives the tensor that ``forward``
    returned its node. A property of the metaclass takes precedence in these lookups; it sees all functions, those of classes
    that are defined meanwhile as well.

    PyTorch documents that ``apply`` calls both methods. It does not document the metaclass.

    Args:
        forward: Called with the class, its own ``forward`` and the arguments; what it returns is returned in its place. The
            arguments begin with the context unless the class overrides ``setup_context``.
        setup_context: Called with the class's own ``setup_context`` and the arguments.
    """

    def forward_of(cls: type[Function]) -> Any:
        original = _static(cls, "forward")
        return _Stand(original, lambda *args, **kwargs: forward(cls, functools.partial(original, **kwargs), args))

    def setup_context_of(cls: type[Function]) -> Any:
        original = _static(cls, "setup_context")
        if not _overrides_setup_context(cls):
            # ``apply`` recognizes the method of the base class by identity.
            return original
        return _Stand(original, lambda *args: setup_context(original, args))

    metaclass: Any = FunctionMeta
    before = {name: vars(metaclass)[name] for name in ("forward", "setup_context") if name in vars(metaclass)}
    metaclass.forward, metaclass.setup_context = property(forward_of), property(setup_context_of)
    try:
        yield
    finally:
        del metaclass.forward, metaclass.setup_context
        for name, value in before.items():
            setattr(metaclass, name, value)


def inputs_of_forward(cls: type[Function], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of ``apply``, given those of ``forward``: without the context."""
    return args if _overrides_setup_context(cls) else args[1:]


def _static(cls: type, name: str) -> Any:
    """Look a static or class method up on a class as Python does where its metaclass has no such property."""
    owner = next(base for base in cls.__mro__ if name in vars(base))
    found = vars(owner)[name]
    return found.__get__(None, cls) if hasattr(found, "__get__") else found


def _overrides_setup_context(cls: type[Function]) -> bool:
    return _static(cls, "setup_context") is not _static(Function, "setup_context")


# Dispatch ---------------------------------------------------------------------------------------------------------
def without_torch_functions() -> AbstractContextManager[Any]:
    """Hide what is computed inside from every ``TorchFunctionMode`` and every subclass of Tensor.

    Enters ``torch._C.DisableTorchFunction``. PyTorch documents ``torch._C.DisableTorchFunctionSubclass``, which leaves modes on.
    """
    found: AbstractContextManager[Any] = torch._C.DisableTorchFunction()
    return found


def function_transforms_are_active() -> bool:
    """Whether the code runs inside of ``torch.func.vmap``, ``grad`` and their like, where tensors are wrapped.

    Calls ``torch._C._are_functorch_transforms_active``. PyTorch documents no such question.
    """
    return bool(torch._C._are_functorch_transforms_active())


def without_dispatch(function: Any) -> Callable[..., Any]:
    """Return a copy of a function of ``torch.nn.functional`` that does not hand itself over to a mode before its first line.

    Replaces the global ``has_torch_function`` that such functions ask. PyTorch documents that modes see these functions whole;
    what they are made of is seen in the copy.
    """
    changed = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = FunctionType(function.__code__, changed, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


WEIGHT_NORM: Callable[..., Any] = torch._weight_norm
"""The kernel that ``torch.nn.utils.parametrizations.weight_norm`` calls, as modes see it; called with ``(v, g, dim)``."""


def compiler_is_loaded() -> bool:
    """Whether ``torch.compile`` was used in this process: it loads ``torch._dynamo``, which takes seconds."""
    return "torch._dynamo" in sys.modules


# Tensors ----------------------------------------------------------------------------------------------------------
def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place.

    Reads ``Tensor._version``, by which autograd finds out that a tensor was overwritten. PyTorch mentions it in its notes on
    autograd, and does not document it.
    """
    return int(tensor._version)


def preserved_version(tensor: Tensor) -> AbstractContextManager[Any]:
    """Put the version of a tensor back on leaving; until then it must have got its values back.

    Enters ``torch.autograd.grad_mode._unsafe_preserve_version_counter``. PyTorch documents ``increment_version`` alone.
    """
    found: AbstractContextManager[Any] = torch.autograd.grad_mode._unsafe_preserve_version_counter(tensor)
    return found


def is_lazy(tensor: Any) -> bool:
    """Whether this is a parameter or a buffer of a lazy layer that has no shape yet.

    ``torch.nn.parameter.is_lazy`` asks the same and is not documented; the two classes are.
    """
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


# Modules ----------------------------------------------------------------------------------------------------------
def parameter_table(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return a module's own parameters by name, None for one that was left out.

    Reads ``Module._parameters``. PyTorch documents ``named_parameters``, which models override.
    """
    return module._parameters


def buffer_table(module: nn.Module) -> dict[str, Tensor | None]:
    """Return a module's own buffers by name, as the dictionary that the module itself reads.

    Reads ``Module._buffers``. PyTorch documents ``named_buffers``, and no way to put another tensor in a buffer's place for a
    while.
    """
    return module._buffers


def tables_of(module: nn.Module) -> dict[str, Any]:
    """Return the dictionaries in which a module keeps its parameters, buffers, submodules and hooks, by attribute.

    Reads ``_parameters``, ``_buffers``, ``_modules`` and every attribute ``…_hooks``. PyTorch documents handles that remove a
    hook, and nothing that removes the hooks that somebody else has registered meanwhile.
    """
    tables = ("_parameters", "_buffers", "_modules")
    return {
        name: table
        for name, table in vars(module).items()
        if name in tables or (name.endswith("_hooks") and hasattr(table, "update"))
    }


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm of any number of dimensions.

    Asks for the base class ``_BatchNorm``. PyTorch documents the classes that derive from it.
    """
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


PARAMETRIZED = "Parametrized"
"""What the name of a module's class begins with once one of its parameters is parametrized."""


# Errors -----------------------------------------------------------------------------------------------------------
_UNSUPPORTED = re.compile(
    "could not create a primitive"  # oneDNN, such as for an LSTM in bfloat16 on a processor without AVX-512
    r"|not implemented for '(Half|BFloat16|Float8\w*)'"
    "|no kernel image is available"  # CUDA, on a GPU for which PyTorch was not compiled
)


def is_unsupported_here(error: BaseException) -> bool:
    """Whether an error says that PyTorch has no kernel for an operator in this data type on this processor or GPU.

    Reads the message. PyTorch raises a plain RuntimeError, and documents neither its messages nor which operators need which
    instructions of a processor.
    """
    return isinstance(error, RuntimeError) and _UNSUPPORTED.search(str(error)) is not None
