"""Private and undocumented parts of PyTorch that this package reads. No other file reads any.

Each function wraps one such part. Its docstring names the part and what PyTorch documents instead. Each has a test in
``tests/unit/engine/test_torch_internals.py``, which says where to look in PyTorch's sources if a new version fails it.
``tests/guards/test_private_torch.py`` keeps private names out of all other files.

PyTorch does not promise the names of autograd nodes, such as ``AddmmBackward0``, either. The tables of operator names stand next
to the code that uses them, in ``engine/capture/operators.py`` and in measures that distinguish operators. The same test file
checks that PyTorch still gives a node each of these names.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol

import torch
import torch.utils._pytree
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, FunctionMeta
from torch.autograd.graph import GradientEdge, Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import BackwardHook
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "PARAMETRIZED",
    "TABLE_NAMES",
    "WEIGHT_NORM",
    "DispatchMode",
    "OutputMetadata",
    "StorageWeakRef",
    "WeakTensorKeyDictionary",
    "apply_node",
    "arose_in_backward",
    "backward_skipped",
    "buffer_table",
    "changed_bases",
    "compiler_is_loaded",
    "convert",
    "custom_function_of",
    "function_transforms_are_active",
    "hooks_skipped_without_gradient",
    "inputs_of_forward",
    "intercepted_custom_functions",
    "is_batch_norm",
    "is_custom",
    "is_lazy",
    "is_leaf_node",
    "is_made_by",
    "is_nested_output",
    "is_packed",
    "is_unsupported_here",
    "lacks_gradient_of_base",
    "leaf_of",
    "next_sequence_number",
    "node_name",
    "output_metadata",
    "owner_of",
    "parameter_table",
    "registered_children",
    "saved",
    "saved_axis",
    "script_attributes",
    "sequence_number",
    "set_script_attribute",
    "set_tensor_hooks",
    "set_version",
    "tables_of",
    "tensor_hooks",
    "version_of",
    "without_compiler",
    "without_dispatch",
    "without_torch_functions",
]


# Autograd nodes ---------------------------------------------------------------------------------------------------
class OutputMetadata(Protocol):
    """Shape, type and device of one tensor of the forward pass, which may have been freed."""

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
    to read the shape of an edge after its tensor was freed.
    """
    found: Sequence[OutputMetadata] = node._input_metadata
    return found


def is_nested_output(node: Node, number: int) -> bool:
    """Return whether an output of a node's operator was a nested tensor, whose rows differ in length.

    Reads ``is_nested_tensor`` of the metadata of :func:`output_metadata`.
    """
    return bool(getattr(output_metadata(node)[number], "is_nested_tensor", False))


def is_packed(tensor: Tensor) -> bool:
    """Return whether an element of a tensor holds several numbers, as in ``float4_e2m1fn_x2``: PyTorch reads none of them."""
    return _is_packed_type(tensor.dtype)


@functools.cache
def _is_packed_type(dtype: torch.dtype) -> bool:
    return str(dtype).endswith(("x2", "x4"))


def sequence_number(node: Node) -> int:
    """Return the number that autograd gave the node when the forward pass created it. Numbers grow in program order.

    Reads ``Node._sequence_nr``. The node of a leaf reports the largest possible number. PyTorch documents sequence numbers only
    as a part of the profiler's output.
    """
    return int(node._sequence_nr())


def next_sequence_number() -> int:
    """Return the sequence number that the next node of this thread will get.

    Reads ``torch._C._autograd._get_sequence_nr``. PyTorch documents no alternative before 2.14, which has a hook that runs for
    every new node.
    """
    return int(torch._C._autograd._get_sequence_nr())


def node_name(node: Node) -> str:
    """Return the name of a node's class, such as ``AddmmBackward0``.

    PyTorch documents ``Node.name()`` and promises no names: a new version may split or rename an operator.
    """
    return type(node).__name__


def is_leaf_node(node: Node) -> bool:
    """Return whether a node stands for a leaf, such as a parameter, in whose ``.grad`` it collects the gradient.

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
    """Return an argument or a tensor that a node saved for its backward pass, or the default if it saved none of this name.

    Reads ``Node._saved_NAME``. PyTorch's tutorials show these attributes, and promise neither their names nor their values.

    Raises:
        RuntimeError: The tensor was overwritten, or the graph was freed.
    """
    return getattr(node, f"_saved_{name}", default)


def saved_axis(node: Node) -> int | None:
    """Return the dimension along which a node's operator works, counted from the last one, -1; None if it saved none.

    Reads ``Node._saved_dim``, a number without a sign where the user's is negative, for an operator whose result has the shape
    of its operand.
    """
    axis = saved(node, "dim")
    if not isinstance(axis, int):
        return None
    axis = axis - 2**64 if axis >= 2**63 else axis
    dimensions = len(output_metadata(node)[0].shape)
    return axis - dimensions if 0 <= axis < dimensions else axis


def apply_node(node: Node, gradients: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Return the gradients of a node's operands, given those of its outputs. Hooks on the node are not run.

    Nodes of PyTorch's own operators are callable, and the node of a ``torch.autograd.Function`` has a method ``apply``. PyTorch
    documents only ``torch.autograd.grad``, which runs the hooks. Such a function receives zeros for outputs without a gradient,
    as from autograd; whether it has asked for None instead, by ``set_materialize_grads(False)``, cannot be read.

    Returns:
        A tensor for each of ``node.next_functions``, or None for no gradient.
    """
    call: Callable[..., Any] = node if callable(node) else node.apply  # type: ignore[attr-defined]
    if is_custom(node):
        gradients = [_zeros(entry) if g is None else g for g, entry in zip(gradients, output_metadata(node))]
    with torch.no_grad():
        found = call(*gradients)
    return found if isinstance(found, tuple) else (found,)


def _zeros(entry: OutputMetadata) -> Tensor:
    return torch.zeros(tuple(entry.shape), dtype=entry.dtype, device=entry.device)


# torch.autograd.Function ------------------------------------------------------------------------------------------
def is_custom(node: Node) -> bool:
    """Return whether a node is that of a ``torch.autograd.Function`` written in Python.

    Its class derives from ``BackwardCFunction``, which is exported and not documented.
    """
    return isinstance(node, BackwardCFunction)


def custom_function_of(node: Node) -> type[Function] | None:
    """Return the ``torch.autograd.Function`` that made a node; None for a node of PyTorch's own operators.

    Reads ``_forward_cls`` of the node's class. PyTorch documents no way from a node to its function.
    """
    return getattr(type(node), "_forward_cls", None) if is_custom(node) else None


def owner_of(tensor: Tensor) -> Tensor | None:
    """Return what keeps the node of a tensor alive: the tensor, or None if the node itself is enough.

    Before PyTorch 2.13, the node of a ``torch.autograd.Function`` is freed with the last tensor and the last node that refer to
    it, even if Python still holds ``grad_fn``. Reading it then raises an error or kills the process (a segmentation fault).
    PyTorch documents no ownership. Its own ``get_gradient_edge`` adds a new node as ``ownership_token`` since version 2.7, which
    would disturb the sequence numbers.
    """
    node = tensor.grad_fn
    return tensor if not _NODES_OWN_THEMSELVES and node is not None and is_custom(node) else None


_NODES_OWN_THEMSELVES = torch.__version__ >= "2.13"  # compares versions, not strings


def changed_bases(outputs: Iterable[GradientEdge]) -> list[GradientEdge]:
    """Return the tensors, as they were before, that operations in place have changed through a view.

    Reads the first edge of each node ``CopySlices`` behind the outputs. PyTorch does not document the node.
    """
    found, pending, seen = [], [edge.node for edge in outputs], set[Node]()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        edges = [GradientEdge(producer, number) for producer, number in node.next_functions if producer is not None]
        if node_name(node) == "CopySlices" and node.next_functions[0][0] is not None:
            found.append(edges[0])
        pending += [edge.node for edge in edges]
    return list(dict.fromkeys(found))


def lacks_gradient_of_base(error: BaseException) -> bool:
    """Return whether PyTorch failed on an operation in place that changes a view and reads an input of the gradient.

    A backward pass that needs the gradient of the value that was written, and not that of the changed tensor, breaks an internal
    assertion of ``CopySlices`` (as of PyTorch 2.13). It works if the gradient of the changed tensor is requested as well.
    """
    return isinstance(error, RuntimeError) and "task_should_compute_output(0) INTERNAL ASSERT" in str(error)


@contextmanager
def backward_skipped(nodes: Iterable[Node]) -> Iterator[None]:
    """Do not run the ``backward`` of these custom functions where no gradient arrives. They return no gradient instead.

    Autograd replaces missing gradients by zeros before it calls ``backward``. A hook sees them first. Replaces
    ``BackwardCFunction.apply``, which autograd looks up on each node of a ``torch.autograd.Function`` and calls.
    """
    nodes = list(nodes)
    if not nodes:
        yield
        return
    silent: set[Node] = set()
    original: Callable[..., Any] = BackwardCFunction.apply

    def note(node: Node, arriving: tuple[Tensor | None, ...]) -> None:
        (silent.discard if any(g is not None for g in arriving) else silent.add)(node)

    def apply(self: Any, *gradients: Any) -> Any:
        return (None,) * len(self.needs_input_grad) if self in silent else original(self, *gradients)

    handles = [node.register_prehook(functools.partial(note, node)) for node in nodes]
    BackwardCFunction.apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        BackwardCFunction.apply = original  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()


@contextmanager
def hooks_skipped_without_gradient() -> Iterator[None]:
    """Do not call the gradient hooks that tensors and modules get meanwhile where no gradient arrives.

    ``Tensor.register_hook`` is documented, and so are the backward hooks of modules. When a module with such hooks is called, its
    hooks are handed to ``torch.utils.hooks.BackwardHook``, which is not documented.
    """
    of_tensors: Callable[..., Any] = Tensor.register_hook
    of_modules: Callable[..., Any] = BackwardHook.__init__

    def register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Any:
        return of_tensors(self, lambda gradient: None if gradient is None else hook(gradient))

    def init(self: Any, module: nn.Module, user_hooks: Iterable[Any], user_pre_hooks: Iterable[Any]) -> None:
        of_modules(self, module, [*map(_if_any, user_hooks)], [*map(_if_any, user_pre_hooks)])

    Tensor.register_hook, BackwardHook.__init__ = register_hook, init  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.register_hook, BackwardHook.__init__ = of_tensors, of_modules  # type: ignore[method-assign]


def _if_any(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a module's backward hook that does nothing if all gradients of the outputs, its last argument, are missing."""
    return lambda *args: hook(*args) if any(g is not None for g in args[-1]) else None


def is_made_by(tensor: Tensor, function: type[Function]) -> bool:
    """Return whether a tensor is a result of ``function.apply``. Results on views of functions that work in place count as well.

    Reads ``_forward_cls`` of the node's class. PyTorch documents no way from a node to its function.
    """
    if tensor.grad_fn is None:
        return False
    return (
        getattr(type(tensor.grad_fn), "_forward_cls", None) is function or type(tensor.grad_fn).__name__ == "CopySlices"
    )


class _Stand:
    """Replaces a static method of a ``torch.autograd.Function`` while its calls are intercepted.

    It has the signature and the code object of the method. ``apply`` reads both to sort keyword arguments.
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
    """Intercept the ``forward`` and the ``setup_context`` of every ``torch.autograd.Function``.

    ``Function.apply`` itself cannot be intercepted. Models keep bound references to it (``swish = Swish.apply``), and since
    PyTorch 2.14 they are functions of the C++ extension. In every version ``apply`` looks up ``forward`` on the class and calls
    it without gradients. If the class overrides ``setup_context``, the same follows for that method. Then ``apply`` attaches a
    node to the tensor that ``forward`` returned. A property of the metaclass takes precedence in these lookups. It applies to
    all classes, including classes that are defined later.

    PyTorch documents that ``apply`` calls both methods. It does not document the metaclass.

    Args:
        forward: Called with the class, its original ``forward`` and the arguments. Its return value replaces the original one.
            The arguments begin with the context unless the class overrides ``setup_context``.
        setup_context: Called with the original ``setup_context`` and the arguments.
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
    """Return the arguments of ``apply``, which are those of ``forward`` without the context."""
    return args if _overrides_setup_context(cls) else args[1:]


def _static(cls: type, name: str) -> Any:
    """Look up a method on a class, past the properties of its metaclass."""
    owner = next(base for base in cls.__mro__ if name in vars(base))
    found = vars(owner)[name]
    return found.__get__(None, cls) if hasattr(found, "__get__") else found


def _overrides_setup_context(cls: type[Function]) -> bool:
    return _static(cls, "setup_context") is not _static(Function, "setup_context")


# Dispatch ---------------------------------------------------------------------------------------------------------
def without_torch_functions() -> AbstractContextManager[Any]:
    """Return a context that hides all computations inside from every ``TorchFunctionMode`` and every subclass of Tensor.

    Enters ``torch._C.DisableTorchFunction``. PyTorch documents ``torch._C.DisableTorchFunctionSubclass``, which leaves modes on.
    """
    found: AbstractContextManager[Any] = torch._C.DisableTorchFunction()
    return found


def function_transforms_are_active() -> bool:
    """Return whether the code runs inside a transform of ``torch.func`` such as ``vmap`` or ``grad``, which wraps tensors.

    Calls ``torch._C._are_functorch_transforms_active``. PyTorch documents no alternative.
    """
    return bool(torch._C._are_functorch_transforms_active())


def without_dispatch(function: Any) -> Callable[..., Any]:
    """Return a copy of a function of ``torch.nn.functional`` whose inner operations are visible to function modes.

    Replaces the globals ``has_torch_function…``, by which such functions pass themselves to a mode as a whole before their first
    line. PyTorch documents only that modes see the whole function.
    """
    tests = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    changed = {**function.__globals__, **dict.fromkeys(tests, lambda *tensors: False)}
    copy = FunctionType(function.__code__, changed, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


WEIGHT_NORM: Callable[..., Any] = torch._weight_norm
"""The function ``(v, g, dim)`` that ``torch.nn.utils.parametrizations.weight_norm`` calls, as function modes see it."""


def compiler_is_loaded() -> bool:
    """Whether this process has loaded ``torch._dynamo``, as ``torch.compile`` does. Loading it takes seconds."""
    return "torch._dynamo" in sys.modules


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let ``torch.func`` differentiate without loading ``torch._dynamo``.

    Replaces ``torch._functorch.eager_transforms._autograd_grad``, which loads the compiler to switch compiled backward passes
    off. Where it is not loaded there are none. PyTorch documents no other way to differentiate inside ``torch.func.vmap``.
    """
    if compiler_is_loaded():
        yield
        return
    from torch._functorch import eager_transforms

    transforms: Any = eager_transforms
    original = transforms._autograd_grad
    transforms._autograd_grad = _dense_gradients
    try:
        yield
    finally:
        transforms._autograd_grad = original


def _dense_gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    **options: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of outputs, with zeros for inputs that they do not depend on; ``options`` are those of autograd."""
    cotangents = [None] * len(outputs) if grad_outputs is None else grad_outputs
    pairs = [(output, cotangent) for output, cotangent in zip(outputs, cotangents) if output.requires_grad]
    if not pairs:
        return tuple(map(torch.zeros_like, inputs))
    roots, carried = zip(*pairs)
    given = None if grad_outputs is None else carried
    found = torch.autograd.grad(roots, inputs, given, **{"create_graph": True, **options}, allow_unused=True)
    return tuple(torch.zeros_like(end) if gradient is None else gradient for gradient, end in zip(found, inputs))


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that sees all operators, and does not load the compiler, which takes seconds and 70 MB.

    ``TorchDispatchMode`` hides the method ``__torch_dispatch__`` of a subclass from ``torch._dynamo``, and loads it for this at
    the first operator. Nothing need be hidden before something else has loaded it.
    """

    def __init_subclass__(cls) -> None:
        visible: Callable[..., Any] = cls.__dict__["__torch_dispatch__"]
        super().__init_subclass__()  # type: ignore[no-untyped-call]
        hidden: Callable[..., Any] = cls.__torch_dispatch__

        def dispatch(*arguments: Any, **options: Any) -> Any:
            return (hidden if compiler_is_loaded() else visible)(*arguments, **options)

        cls.__torch_dispatch__ = dispatch  # type: ignore[method-assign]


# Tensors ----------------------------------------------------------------------------------------------------------
def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place.

    Reads ``Tensor._version``, by which autograd notices that a tensor was overwritten. PyTorch's notes on autograd mention it,
    its reference does not.
    """
    return int(tensor._version)


def set_version(tensor: Tensor, version: int) -> None:
    """Set the version of a tensor. The caller has restored the values that it had then.

    Calls ``torch._C._autograd._unsafe_set_version_counter``. PyTorch documents only ``increment_version``.
    """
    change: Callable[..., None] = torch._C._autograd._unsafe_set_version_counter
    if _VERSIONS_ARE_SET_TOGETHER:
        change((tensor,), (version,))
    else:
        change(tensor, version)


_VERSIONS_ARE_SET_TOGETHER = (
    "tensors" in inspect.signature(torch.autograd.grad_mode._unsafe_preserve_version_counter.__init__).parameters
)


def tensor_hooks(tensor: Tensor) -> tuple[Any, Any]:
    """Return the dictionaries of a leaf's hooks: on its gradient, and on its ``.grad`` once it is accumulated; None for none yet.

    Reads ``Tensor._backward_hooks`` and ``Tensor._post_accumulate_grad_hooks``. PyTorch documents handles that remove a hook, and
    no way to remove hooks without their handles.
    """
    return tensor._backward_hooks, tensor._post_accumulate_grad_hooks


def set_tensor_hooks(tensor: Tensor, tables: Sequence[Any]) -> None:
    """Set the dictionaries of :func:`tensor_hooks`, and empty those that were set: PyTorch may go on to call what they hold."""
    for table in tensor_hooks(tensor):
        if table is not None:
            table.clear()
    tensor._backward_hooks, tensor._post_accumulate_grad_hooks = tables


def is_lazy(tensor: Any) -> bool:
    """Return whether this is a parameter or a buffer of a lazy layer that has no shape yet.

    The two classes are documented, ``torch.nn.parameter.is_lazy`` is not.
    """
    return isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))


# Modules ----------------------------------------------------------------------------------------------------------
def child_table(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return a module's children by name, and None for a child that was registered as None.

    Reads ``Module._modules``. PyTorch documents ``named_children``, which leaves out children that are equal to an earlier one.
    """
    return module._modules


def convert(module: nn.Module, conversion: Callable[[Tensor], Tensor]) -> None:
    """Replace all parameters and buffers of a module.

    Calls ``Module._apply``, on which the documented ``Module.to`` is built.
    """
    apply: Callable[..., Any] = module._apply
    apply(conversion)


def parameter_table(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return a module's direct parameters by name, and None for a parameter that was registered as None.

    Reads ``Module._parameters``. PyTorch documents ``named_parameters``, which models may override.
    """
    return module._parameters


def buffer_table(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the dictionary in which a module keeps its direct buffers by name. Changes of it change the module.

    Reads ``Module._buffers``. PyTorch documents ``named_buffers``, and no way to replace a buffer for a while.
    """
    return module._buffers


def tables_of(module: nn.Module) -> dict[str, Any]:
    """Return the dictionaries in which a module keeps its parameters, buffers, submodules and hooks, by attribute.

    Reads ``_parameters``, ``_buffers``, ``_modules`` and every attribute ``…_hooks``. PyTorch documents handles that remove a
    hook, and no way to remove hooks without their handles.
    """
    tables = ("_parameters", "_buffers", "_modules")
    return {
        name: table
        for name, table in vars(module).items()
        if name in tables or (name.endswith("_hooks") and hasattr(table, "update"))
    }


TABLE_NAMES = tuple(name for name, table in vars(nn.Module()).items() if isinstance(table, dict))
"""The attributes of every module that are dictionaries: those of :func:`tables_of`, and what is noted about hooks."""


def script_attributes(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """Return the attributes of a scripted module by name, buffers and parameters included; none of a frozen module.

    Attributes that have no counterpart in Python are left out.

    Reads ``_concrete_type`` and ``_c``. PyTorch documents that attributes can be read by name, and not which there are.
    """
    declared = getattr(module, "_concrete_type", None)
    names = () if declared is None else declared.get_attributes()
    return {name: held for name in names for held in _script_attribute(module, name)}


def _script_attribute(module: torch.jit.ScriptModule, name: str) -> tuple[Any, ...]:
    try:
        return (module._c.getattr(name),)
    except RuntimeError:
        return ()


def set_script_attribute(module: torch.jit.ScriptModule, name: str, value: Any) -> None:
    """Set an attribute of :func:`script_attributes`, past the methods of Python that wrap it."""
    module._c.setattr(name, value)


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm of any number of dimensions.

    Compares the base class ``_BatchNorm``. PyTorch documents the classes that derive from it.
    """
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


PARAMETRIZED = "Parametrized"
"""Prefix of a module's class name after one of its parameters was parametrized."""


# Errors -----------------------------------------------------------------------------------------------------------
_UNSUPPORTED = re.compile(
    "could not create a primitive"  # oneDNN, such as for an LSTM in bfloat16 on a processor without AVX-512
    r"|not implemented for '(Half|BFloat16|Float8\w*)'"
    "|no kernel image is available"  # CUDA, on a GPU for which PyTorch was not compiled
)


def arose_in_backward(error: BaseException) -> bool:
    """Return whether an error was raised by a backward pass: by a node, by the model's own code in it, or by a hook.

    Looks for a frame of a file in ``torch/autograd``, from which the engine is called and Python code is called back. PyTorch
    documents no class of such errors.
    """
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).parent == _AUTOGRAD:
            return True
        trace = trace.tb_next
    return False


_AUTOGRAD = Path(torch.autograd.__file__).parent


def is_unsupported_here(error: BaseException) -> bool:
    """Return whether an error says that PyTorch has no kernel for an operator in this data type on this processor or GPU.

    Reads the message. PyTorch raises a plain RuntimeError, and documents neither its messages nor which operators need which
    instructions of a processor.
    """
    return isinstance(error, RuntimeError) and _UNSUPPORTED.search(str(error)) is not None


def registered_children(
    container: object,
) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """Return the children of a container that is registered with ``torch.utils._pytree``, and a function that rebuilds it.

    PyTorch documents the registration for ``torch.export`` and has no public function that reads it.

    Returns:
        The children, and a function that makes a container of the same kind of other children; None for other objects.
    """
    definition = torch.utils._pytree.SUPPORTED_NODES.get(type(container))
    if definition is None:
        return None
    children, context = definition.flatten_fn(container)
    return list(children), lambda replaced: definition.unflatten_fn(replaced, context)
