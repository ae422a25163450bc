"""Private parts of PyTorch are as the package assumes: one test for each function of ``engine/torch_internals``.

Where a new version of PyTorch fails one of these tests, its docstring says what to look for in that version's sources. Every
other failure of the suite is easier to understand once these pass.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its own name
from custom_functions import Doubled
from processor import skipped_without_kernel
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import Node
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pytest_trainability.engine import torch_internals as internals
from pytest_trainability.engine.capture import operators
from pytest_trainability.engine.capture.operators import operator_name
from pytest_trainability.measures.depth import residual_branches
from pytest_trainability.measures.structure import duplicates, linearity


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that requires grad, without symmetries."""
    values = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32)
    return (values / 7).sin().reshape(shape).to(dtype).requires_grad_()


def node_of(tensor: Tensor) -> Node:
    assert tensor.grad_fn is not None
    return tensor.grad_fn


class Recording(TorchFunctionMode):
    """Notes the functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[object, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.called.append((func, len(args)))
        return func(*args, **(kwargs or {}))

    def names(self) -> list[str]:
        return [getattr(func, "__name__", "") for func, _ in self.called]


doubling = Doubled.apply


class WithSetup(Function):
    @staticmethod
    def forward(x, factor=3.0):
        return factor * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1] if len(inputs) > 1 else 3.0

    @staticmethod
    def backward(ctx, gradient):
        return ctx.factor * gradient, None


# Autograd nodes ------------------------------------------------------------------------------------------------------


def test_output_metadata():
    """Look for ``_input_metadata`` in ``torch/csrc/autograd/python_cpp_function.cpp`` and ``python_function.cpp``.

    It is there for nodes of PyTorch's operators, of leaves and of autograd functions, one entry for each output, whether the
    tensor is alive or not.
    """
    small, large = leaf(3, 4, dtype=torch.float64).split([1, 2])
    # See `test_owner_of`.
    doubled = doubling(large)
    nodes = {node_of(small): [(1, 4), (2, 4)], node_of(doubled): [(2, 4)]}
    del small, large
    for node, shapes in nodes.items():
        entries = internals.output_metadata(node)
        assert [tuple(entry.shape) for entry in entries] == shapes
        assert {(entry.dtype, entry.device) for entry in entries} == {(torch.float64, torch.device("cpu"))}
    (entry,) = internals.output_metadata(torch.autograd.graph.get_gradient_edge(leaf(5)).node)
    assert tuple(entry.shape) == (5,)


def test_owner_of():
    """Look for ``THPFunction`` in ``torch/csrc/autograd/python_function.h``: whether ``cdata`` owns the node, as since 2.13.

    If it does not, the first access to a node whose tensor is gone fails, and others kill the process.
    """
    assert internals.owner_of(leaf(2)) is None
    assert internals.owner_of(2 * leaf(2)) is None
    doubled = doubling(2 * leaf(2))
    node, owner = node_of(doubled), internals.owner_of(doubled)
    del doubled
    assert [internals.node_name(producer) for producer, _ in node.next_functions] == ["MulBackward0"]
    assert internals.sequence_number(node) < internals.next_sequence_number()
    assert tuple(internals.output_metadata(node)[0].shape) == (2,)
    del owner


def test_sequence_number():
    """Look for ``_sequence_nr`` and ``sequence_nr_`` in ``torch/csrc/autograd/function.h``: nodes get ascending numbers."""
    first = leaf(2) * 2
    second = doubling(first)
    third = second + first
    numbers = [internals.sequence_number(node_of(tensor)) for tensor in (first, second, third)]
    assert numbers == sorted(set(numbers))
    (accumulating, _), *_ = node_of(first).next_functions
    assert internals.sequence_number(accumulating) > numbers[-1]


def test_next_sequence_number():
    """Look for ``_get_sequence_nr`` in ``torch/csrc/autograd/init.cpp``: it reads the counter and does not advance it."""
    x = leaf(2)
    before = internals.next_sequence_number()
    assert internals.next_sequence_number() == before
    y = x * 2
    assert internals.sequence_number(node_of(y)) == before
    assert internals.next_sequence_number() == before + 1
    with torch.no_grad():
        _ = x * 2
    assert internals.next_sequence_number() == before + 1


def test_node_name():
    """Look for ``def name`` of nodes: the name of the class, which says the operator and a number, is ``Node.name()`` too."""
    assert internals.node_name(node_of(leaf(2, 2) @ leaf(2, 2))) == "MmBackward0"
    assert internals.node_name(node_of(doubling(leaf(2)))) == "DoubledBackward"
    assert internals.node_name(node_of(leaf(2) * 2)) == node_of(leaf(2) * 2).name()


def test_is_leaf_node():
    """Look for ``AccumulateGrad`` in ``torch/csrc/autograd/functions/accumulate_grad.h``: the class of the nodes of leaves."""
    y = leaf(2) * 2
    assert not internals.is_leaf_node(node_of(y))
    assert internals.is_leaf_node(node_of(y).next_functions[0][0])


def test_leaf_of():
    """Look for ``variable`` of ``AccumulateGrad`` in ``torch/csrc/autograd/functions/init.cpp``: the leaf itself."""
    x = leaf(2)
    y = x * 2
    assert internals.leaf_of(node_of(y).next_functions[0][0]) is x
    assert internals.leaf_of(node_of(y)) is None
    assert internals.leaf_of(None) is None


def test_saved():
    """Look for the operator in ``tools/autograd/derivatives.yaml``: its formulas name what is saved, ``self`` and ``other``.

    A tensor that was overwritten raises a RuntimeError when it is read.
    """
    x, y = leaf(3), leaf(3)
    product = node_of(x * y)
    assert internals.saved(product, "self") is x
    assert internals.saved(product, "other") is y
    assert internals.saved(product, "alpha", default=1) == 1
    assert internals.saved(node_of(torch.add(x, y, alpha=2)), "alpha") == 2
    assert internals.saved(node_of(x / y), "other") is y
    assert internals.saved(node_of(F.leaky_relu(x, 0.5)), "negative_slope") == 0.5
    norm = nn.BatchNorm1d(3)
    assert internals.saved(node_of(norm(leaf(2, 3))), "training") is True
    assert internals.saved(node_of(norm.eval()(leaf(2, 3))), "training") is False
    for cls, transposed in ((nn.Conv1d, False), (nn.ConvTranspose1d, True)):
        (convolved,) = (n for n in graph_of(cls(4, 4, 1, groups=2)(leaf(2, 4, 3))) if "Convolution" in operator_name(n))
        assert internals.saved(convolved, "transposed") is transposed
        assert internals.saved(convolved, "groups") == 2
    indices = torch.tensor([1, 0])
    found = internals.saved(node_of(F.embedding(indices, leaf(2, 3))), "indices")
    assert found.untyped_storage().data_ptr() == indices.untyped_storage().data_ptr()
    changed = x * 1
    overwritten = node_of(changed * y)
    with torch.no_grad():
        changed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        internals.saved(overwritten, "self")


def test_apply_node():
    """Look for ``__call__`` of nodes in ``torch/csrc/autograd/python_cpp_function.cpp``: it runs no hook that sits on the node.

    What a call returns is a tuple where the operator reads several tensors. The nodes of autograd functions have ``apply``.
    """
    x, y = leaf(3), leaf(3)
    product = x * y
    product.register_hook(lambda gradient: 100 * gradient)
    first, second = internals.apply_node(node_of(product), [torch.ones(3)])
    assert torch.equal(first, y)
    assert torch.equal(second, x)
    assert not first.requires_grad
    doubled = doubling(x)
    assert torch.equal(internals.apply_node(node_of(doubled), [torch.ones(3)])[0], torch.full((3,), 2.0))
    parts = x.split([1, 2])
    (found,) = internals.apply_node(node_of(parts[0]), [None, torch.ones(2)])
    assert found.tolist() == [0, 1, 1]


def test_apply_node_gives_zeros_to_functions_of_several_outputs():
    """Look for ``materialize_grads`` in ``torch/csrc/autograd/python_function.cpp``: autograd makes zeros before the call."""

    class Two(Function):
        @staticmethod
        def forward(ctx, x):
            return x + 1, 3 * x

        @staticmethod
        def backward(ctx, first, second):
            return first + 3 * second

    first, second = Two.apply(leaf(2))
    assert internals.apply_node(node_of(first), [torch.ones(2), None])[0].tolist() == [1, 1]
    assert internals.apply_node(node_of(second), [None, torch.ones(2)])[0].tolist() == [3, 3]


def test_changed_bases_give_the_gradient_that_pytorch_lacks():
    """Look for ``should_execute`` in ``CopySlices::apply`` (``torch/csrc/autograd/functions/tensor.cpp``).

    Once PyTorch computes the first gradient itself, both functions can go.
    """
    base = leaf(2).clone()
    view = base.view(1, 2)
    before = torch.autograd.graph.get_gradient_edge(view)
    view.add_(view, alpha=0.5)
    after = torch.autograd.graph.get_gradient_edge(view.sum())
    with pytest.raises(RuntimeError) as failed:
        torch.autograd.grad([after], [before], retain_graph=True)
    assert internals.lacks_gradient_of_base(failed.value)
    assert not internals.lacks_gradient_of_base(RuntimeError("should_execute"))
    bases = internals.changed_bases([after])
    assert [internals.node_name(edge.node) for edge in bases] == ["CloneBackward0"]
    gradient, _ = torch.autograd.grad([after], [before, *bases])
    assert gradient.tolist() == [[0.5, 0.5]]


# torch.autograd.Function ---------------------------------------------------------------------------------------------


def test_is_custom():
    """Look for ``BackwardCFunction`` in ``torch/autograd/function.py``: the base of the nodes of autograd functions."""
    assert internals.is_custom(node_of(doubling(leaf(2))))
    assert not internals.is_custom(node_of(leaf(2) * 2))


def test_backward_skipped():
    """Look for ``apply`` of ``BackwardCFunction`` in ``torch/autograd/function.py``: autograd calls it."""
    calls = []

    class Counted(Function):
        @staticmethod
        def forward(ctx, x, factor):
            return x * factor

        @staticmethod
        def backward(ctx, gradient):
            calls.append(gradient)
            return gradient * 2, None

    x = leaf(2)
    y = Counted.apply(x, 2)
    stop = y.grad_fn.register_prehook(lambda arriving: (None,) * len(arriving))
    with internals.backward_skipped([y.grad_fn]):
        assert torch.autograd.grad(y.sum(), x, retain_graph=True, allow_unused=True) == (None,)
    assert not calls
    stop.remove()
    with internals.backward_skipped([y.grad_fn]):
        assert torch.autograd.grad(y.sum(), x, retain_graph=True)[0].tolist() == [2, 2]
    assert len(calls) == 1
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [2, 2]


def test_hooks_skipped_without_gradient():
    """Look for ``register_hook`` in ``torch/_tensor.py`` and for ``BackwardHook`` in ``torch/utils/hooks.py``."""
    arrived = []
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda module, entering, leaving: arrived.append(leaving[0]))
    layer.register_full_backward_pre_hook(lambda module, leaving: arrived.append(leaving[0]))
    original = torch.Tensor.register_hook
    x = leaf(1, 2)
    with internals.hooks_skipped_without_gradient():
        y = layer(x)
        y.register_hook(arrived.append)
        z = y * 2
    assert torch.Tensor.register_hook is original
    stop = z.grad_fn.register_prehook(lambda arriving: (None,) * len(arriving))
    torch.autograd.grad(z.sum(), x, retain_graph=True, allow_unused=True)
    assert arrived == []
    stop.remove()
    torch.autograd.grad(z.sum(), x)
    assert len(arrived) == 3 and not any(gradient is None for gradient in arrived)


def test_is_made_by():
    """Look for ``_forward_cls`` in ``FunctionMeta`` (``torch/autograd/function.py``): the function that a node is of."""
    assert internals.is_made_by(doubling(leaf(2)), Doubled)
    assert not internals.is_made_by(doubling(leaf(2)), WithSetup)
    assert not internals.is_made_by(leaf(2) * 2, Doubled)
    assert not internals.is_made_by(leaf(2), Doubled)


class Hidden(Function):
    """Not called by name: one bound method of it is all there is."""

    @staticmethod
    def forward(ctx, x):
        return x + 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize(
    ("apply", "cls", "order"),
    [
        (doubling, Doubled, ["forward Doubled", "end of forward"]),
        (WithSetup.apply, WithSetup, ["forward WithSetup", "end of forward", "setup", "end of setup"]),
        (Hidden.apply, Hidden, ["forward Hidden", "end of forward"]),
    ],
    ids=["context first", "setup_context", "bound beforehand"],
)
def test_intercepted_custom_functions(apply, cls, order):
    """Look for ``THPFunction_apply`` in ``torch/csrc/autograd/python_function.cpp`` and ``Function.apply`` in Python.

    Both must look up ``forward`` on the class at each call, so that a property of the metaclass is seen, and nothing of what is
    called afterwards but ``setup_context``. The tensor that ``forward`` returns must be the one that ``apply`` returns, with a
    node. Without this, ``saturated_fraction`` and ``dead_fraction`` miss the autograd functions of models.
    """
    seen, results = [], []

    def forward(function, original, args):
        seen.append(f"forward {function.__name__}")
        assert internals.inputs_of_forward(function, args)[0] is x
        assert not torch.is_grad_enabled()
        results.append(original(*args))
        seen.append("end of forward")
        return results[-1]

    def setup_context(original, args):
        seen.append("setup")
        original(*args)
        seen.append("end of setup")

    x = leaf(3)
    expected = apply(x)
    with internals.intercepted_custom_functions(forward, setup_context):
        found = apply(x)
    assert seen == order
    assert found is results[0]
    assert internals.is_made_by(found, cls)
    assert torch.equal(found, expected)
    apply(x)
    assert seen == order, "calls are intercepted after the end"
    assert not {"forward", "setup_context"} & set(vars(torch.autograd.function.FunctionMeta))


def test_intercepted_custom_functions_of_one_another():
    """An interception inside of another replaces it, and ends with the other in place."""
    outer, inner = [], []

    def noting(where):
        def forward(function, original, args):
            where.append(function)
            return original(*args)

        return forward

    def setup(original, args):
        original(*args)

    with internals.intercepted_custom_functions(noting(outer), setup):
        with internals.intercepted_custom_functions(noting(inner), setup):
            doubling(leaf(2))
        doubling(leaf(2))
    assert (outer, inner) == ([Doubled], [Doubled])


def test_inputs_of_forward():
    """Look for ``setup_context`` in ``torch/autograd/function.py``: where it is overridden, forward is given no context."""
    assert internals.inputs_of_forward(Doubled, ("context", 1)) == (1,)
    assert internals.inputs_of_forward(WithSetup, (1, 2)) == (1, 2)


# Dispatch ------------------------------------------------------------------------------------------------------------


def test_without_torch_functions():
    """Look for ``DisableTorchFunction`` in ``torch/csrc/utils/disable_torch_function.cpp``: it hides calls from modes, too."""
    with Recording() as mode:
        torch.ones(2)
        with internals.without_torch_functions():
            torch.ones(2)
        torch.zeros(2)
    assert mode.names() == ["ones", "zeros"]


def test_function_transforms_are_active():
    """Look for ``_are_functorch_transforms_active`` in ``torch/csrc/functorch/init.cpp``."""
    found = []

    def noting(x: Tensor) -> Tensor:
        found.append(internals.function_transforms_are_active())
        return x.sum()

    torch.func.grad(noting)(torch.ones(2))
    torch.func.vmap(noting)(torch.ones(2, 2))
    noting(torch.ones(2))
    assert found == [True, True, False]


def test_without_dispatch():
    """Look for ``has_torch_function`` in ``torch/nn/functional.py``: every function there asks it, by its global name, first."""
    attention = nn.MultiheadAttention(4, 2)
    x = torch.ones(3, 1, 4)
    rest = [attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0, attention.out_proj.weight]
    arguments = [x, x, x, 4, 2, *rest, attention.out_proj.bias]
    with Recording() as closed:
        expected = F.multi_head_attention_forward(*arguments)
    with Recording() as opened:
        found = internals.without_dispatch(F.multi_head_attention_forward)(*arguments)
    assert closed.names() == ["multi_head_attention_forward"]
    assert {"softmax", "bmm"} & set(opened.names()) or "baddbmm" in opened.names()
    assert "multi_head_attention_forward" not in opened.names()
    assert torch.equal(found[0], expected[0])


def test_weight_norm():
    """Look for ``_WeightNorm`` in ``torch/nn/utils/parametrizations.py``: it calls ``torch._weight_norm(v, g, dim)``."""
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    with Recording() as mode:
        _ = layer.weight
    assert (internals.WEIGHT_NORM, 3) in mode.called


def test_compiler_is_loaded():
    """Look for imports of ``torch._dynamo`` in ``torch/__init__.py``: that of torch alone must not load the compiler."""
    code = (
        "import torch; from pytest_trainability.engine.torch_internals import compiler_is_loaded as f; "
        "before = f(); import torch._dynamo; print(before, f())"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"]


def test_without_compiler():
    """Look for ``_autograd_grad`` in ``torch/_functorch/eager_transforms.py``: ``grad`` calls it, and it loads the compiler.

    In PyTorch 2.6, ``vmap`` alone loads the compiler.
    """
    code = (
        "import sys, torch; from torch.func import grad_and_value, vmap; "
        "from pytest_trainability.engine.torch_internals import without_compiler; "
        "x, f = torch.arange(3.0), lambda w, x: (w['a'] * x).square().sum() + 0 * w['b'].detach().sum()\n"
        "w = {'a': torch.ones(2), 'b': torch.ones(1)}\n"
        "vmap(lambda x: 2 * x)(x); loaded = 'torch._dynamo' in sys.modules\n"
        "with without_compiler(): found, values = vmap(grad_and_value(f), (None, 0))(w, x)\n"
        "print(('torch._dynamo' in sys.modules) == loaded)\n"
        "print(found['a'].tolist() == [[0, 0], [2, 2], [8, 8]], values.tolist() == [0, 2, 8])\n"
        "print(found['b'].tolist() == [[0]] * 3)\n"
        "from torch._functorch import eager_transforms as e; print(e._autograd_grad.__module__ == e.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["True"] * 5


@pytest.mark.parametrize("given", [False, True])
def test_gradients_without_the_compiler_are_those_of_torch_func(given):
    """Cotangents or none, and outputs or inputs that depend on nothing."""
    x, unused = leaf(2), leaf(3)
    outputs, inputs = [x.square().sum(), torch.ones(())], [x, unused]
    cotangents = [torch.tensor(3.0), torch.ones(())] if given else None
    from torch._functorch import eager_transforms

    expected = eager_transforms._autograd_grad(outputs, inputs, cotangents, retain_graph=True)
    found = internals._dense_gradients(outputs, inputs, cotangents, retain_graph=True)
    assert all(map(torch.equal, found, expected)) and len(found) == 2
    assert internals._dense_gradients([torch.ones(())], inputs)[1].tolist() == [0, 0, 0]


def test_torch_dispatch_mode():
    """Look for ``TorchDispatchMode`` in ``torch/utils/_python_dispatch.py``: it sees the operators that ``torch.empty`` calls."""
    called = []

    class Noting(internals.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Noting():
        torch.empty(2).fill_(1.0)
    assert called == ["empty", "fill_"]


def test_weak_tensor_key_dictionary():
    """Look for ``WeakTensorKeyDictionary`` in ``torch/utils/weak.py``: keys are told apart by identity and not kept alive."""
    table = internals.WeakTensorKeyDictionary()
    kept, lost = torch.ones(2), torch.ones(2)
    table[kept], table[lost] = "kept", "lost"
    assert table[kept] == "kept"
    assert torch.ones(2) not in table
    del lost
    assert list(table.values()) == ["kept"]


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU], ids=lambda cls: cls.__name__)
def test_kernels_of_recurrent_layers(cls):
    """Look for ``_VF.lstm`` and its like in ``torch/nn/modules/rnn.py``: one call, with nine arguments by position.

    ``engine/capture/fused_rnn`` replaces it by single time steps, and would otherwise see no steps.
    """
    with Recording() as mode:
        cls(3, 3)(torch.ones(2, 1, 3))
    kernels = {"rnn_tanh", "lstm", "gru"}
    assert [(n, count) for n, (_, count) in zip(mode.names(), mode.called) if n in kernels] == [
        ({nn.RNN: "rnn_tanh", nn.LSTM: "lstm", nn.GRU: "gru"}[cls], 9)
    ]


# Tensors -------------------------------------------------------------------------------------------------------------


def test_version_of():
    """Look for ``_version`` in ``torch/csrc/autograd/python_variable.cpp``: it counts changes in place, of views as well."""
    x = torch.ones(2)
    assert internals.version_of(x) == 0
    x.add_(1)
    x[0].mul_(2)
    assert internals.version_of(x) == 2


def test_set_version():
    """Look for ``_unsafe_preserve_version_counter`` in ``torch/autograd/grad_mode.py``: it puts the count back on leaving."""
    x = torch.ones(2).add_(1)
    x.add_(1)
    internals.set_version(x, 1)
    assert internals.version_of(x) == 1


def test_tensor_hooks():
    """Look for ``register_hook`` and ``register_post_accumulate_grad_hook`` in ``torch/_tensor.py``: both fill a dictionary."""
    x, calls = torch.ones(2, requires_grad=True), []
    assert internals.tensor_hooks(x) == (None, None)
    x.register_hook(lambda gradient: calls.append("gradient"))
    x.register_post_accumulate_grad_hook(lambda tensor: calls.append("accumulated"))
    tables = internals.tensor_hooks(x)
    held = list(map(dict, tables))
    assert list(map(len, held)) == [1, 1]
    internals.set_tensor_hooks(x, (None, None))
    x.sum().backward()
    assert internals.tensor_hooks(x) == (None, None) and not calls
    internals.set_tensor_hooks(x, tables)
    for table, hooks in zip(tables, held):
        table.update(hooks)
    x.sum().backward()
    assert calls == ["gradient", "accumulated"]


def test_is_lazy():
    """Look for ``UninitializedParameter`` and ``UninitializedBuffer`` in ``torch/nn/parameter.py``."""
    layer, norm = nn.LazyLinear(2), nn.LazyBatchNorm1d()
    assert internals.is_lazy(layer.weight)
    assert internals.is_lazy(norm.running_mean)
    layer(torch.ones(1, 3))
    assert not internals.is_lazy(layer.weight)
    assert not internals.is_lazy(nn.Linear(2, 2).weight)


# Modules -------------------------------------------------------------------------------------------------------------


def test_parameter_table():
    """Look for ``_parameters`` in ``torch/nn/modules/module.py``: a module's own ones by name, None for one that was left out."""
    layer = nn.Linear(2, 2, bias=False)
    assert dict(internals.parameter_table(layer)) == {"weight": layer.weight, "bias": None}
    assert dict(internals.parameter_table(nn.Sequential(layer))) == {}


def test_convert():
    """Look for ``_apply`` in ``torch/nn/modules/module.py``: ``Module.to`` calls it with a function of a tensor."""
    norm = nn.BatchNorm1d(2)
    internals.convert(norm, lambda t: t.double() if t.is_floating_point() else t)
    assert {t.dtype for t in norm.state_dict().values()} == {torch.float64, torch.int64}


def test_buffer_table():
    """Look for ``_buffers`` in ``torch/nn/modules/module.py``: what is put into the dictionary is the module's buffer."""
    norm = nn.BatchNorm1d(2)
    table = internals.buffer_table(norm)
    assert list(table) == ["running_mean", "running_var", "num_batches_tracked"]
    table["running_mean"] = other = torch.ones(2)
    assert norm.running_mean is other


def test_tables_of():
    """Look for ``__init__`` in ``torch/nn/modules/module.py``: a hook lies in a dictionary whose name ends in ``_hooks``."""
    module = nn.Sequential(nn.Linear(2, 2))
    before = {name: len(table) for name, table in internals.tables_of(module).items()}
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    module.register_full_backward_hook(lambda *_: None)
    module.register_buffer("number", torch.ones(1))
    module.register_parameter("weight", nn.Parameter(torch.ones(1)))
    module.append(nn.Linear(2, 2))
    after = {name: len(table) for name, table in internals.tables_of(module).items()}
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "_forward_hooks": 1,
        "_forward_pre_hooks": 1,
        "_backward_hooks": 1,
        "_buffers": 1,
        "_parameters": 1,
        "_modules": 1,
    }


def test_table_names():
    """Look for ``__init__`` in ``torch/nn/modules/module.py``."""
    layer = nn.Linear(2, 2)
    assert set(internals.tables_of(layer)) < set(internals.TABLE_NAMES) < set(vars(layer))


class Scripted(nn.Module):
    """Has a number as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script_attributes():
    """Look for ``_concrete_type`` and ``_c`` in ``torch/jit/_script.py``: the type lists the attributes of the C++ module."""
    module = torch.jit.script(Scripted())
    module(torch.ones(2))
    found = internals.script_attributes(module)
    assert found["calls"] == 1 and found["training"] and found["mean"] is module.mean
    internals.set_script_attribute(module, "calls", 0)
    internals.set_script_attribute(module, "mean", mean := torch.ones(2))
    assert module.calls == 0 and module.mean is mean
    assert internals.script_attributes(torch.jit.freeze(module.eval())) == {}


def test_script_attributes_without_a_counterpart_in_python_are_left_out():
    """PyTorch has few such types, and none that is easy to make."""

    class Values:
        def getattr(self, name: str) -> int:
            if name == "future":
                raise RuntimeError
            return 1

    declared = SimpleNamespace(get_attributes=lambda: {"future": None, "calls": None})
    assert internals.script_attributes(SimpleNamespace(_concrete_type=declared, _c=Values())) == {"calls": 1}


def test_is_batch_norm():
    """Look for ``_BatchNorm`` in ``torch/nn/modules/batchnorm.py``: the base of all of them, and of no other norm."""
    for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert internals.is_batch_norm(cls(2))
    for other in (nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.InstanceNorm1d(2)):
        assert not internals.is_batch_norm(other)


def test_parametrized():
    """Look for ``_inject_new_text`` in ``torch/nn/utils/parametrize.py``: it names the class ``Parametrized…``."""
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    assert type(layer).__name__ == f"{internals.PARAMETRIZED}Linear"


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("could not create a primitive descriptor for an LSTM forward propagation primitive"), True),
        (NotImplementedError("\"bernoulli_scalar_cpu_\" not implemented for 'Float8_e4m3fn'"), True),
        (RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"), True),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), True),
        (RuntimeError("\"softmax_lastdim_kernel_impl\" not implemented for 'Long'"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("could not create a primitive"), False),
    ],
    ids=["onednn", "float8", "half", "cuda", "integers", "shapes", "another error"],
)
def test_is_unsupported_here(error, expected):
    """Look for the message that this machine gives, in the test below."""
    assert internals.is_unsupported_here(error) == expected


def test_arose_in_backward():
    """Look for the callers of ``_engine_run_backward`` in ``torch/autograd``."""

    def fail(gradient):
        raise ValueError("of a hook")

    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(fail)
    with pytest.raises(ValueError, match="of a hook") as caught:
        torch.autograd.grad(y.sum(), x)
    assert internals.arose_in_backward(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2) @ torch.ones(3)
    assert not internals.arose_in_backward(caught.value)
    assert not internals.arose_in_backward(ValueError("never raised"))


def test_a_type_without_kernels_is_unsupported():
    """Look for ``AT_DISPATCH`` in ``aten/src/ATen/Dispatch.h``: a type without a kernel is named in the message."""
    small = torch.ones(2, 2).to(torch.float8_e5m2)
    with pytest.raises(RuntimeError) as caught:
        torch.tanh(small)
    assert internals.is_unsupported_here(caught.value)


def test_fused_lstm_under_autocast_runs_or_is_unsupported():
    """Look for ``mkldnn_rnn_layer`` in ``aten/src/ATen/native/mkldnn/RNN.cpp``: an LSTM in bfloat16 may need AVX-512."""
    with skipped_without_kernel(), torch.autocast("cpu", torch.bfloat16):
        nn.LSTM(4, 4)(torch.ones(3, 2, 4))


# Names of autograd nodes ---------------------------------------------------------------------------------------------


def graph_of(*tensors: Tensor) -> set[Node]:
    pending, found = [node_of(tensor) for tensor in tensors], set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [producer for producer, _ in node.next_functions if producer is not None]
    return found


def image(*sizes: int) -> Tensor:
    return leaf(1, 2, *sizes)


MAKING: dict[str, Callable[[], Tensor]] = {
    "AdaptiveAvgPool2D": lambda: F.adaptive_avg_pool2d(image(4, 4), 2),
    "AdaptiveAvgPool3D": lambda: F.adaptive_avg_pool3d(image(4, 4, 4), 2),
    "Add": lambda: leaf(2) + leaf(2),
    "Addcmul": lambda: torch.addcmul(leaf(2), leaf(2), leaf(2)),
    "Addbmm": lambda: torch.addbmm(leaf(2, 2), leaf(3, 2, 2), leaf(3, 2, 2)),
    "Addmm": lambda: torch.addmm(leaf(2), leaf(2, 2), leaf(2, 2)),
    "Addmv": lambda: torch.addmv(leaf(2), leaf(2, 2), leaf(2)),
    "Alias": lambda: torch.ops.aten.alias(leaf(2)),
    "AsStrided": lambda: leaf(4).as_strided((2, 2), (2, 1)),
    "AvgPool2D": lambda: F.avg_pool2d(image(4, 4), 2),
    "AvgPool3D": lambda: F.avg_pool3d(image(4, 4, 4), 2),
    "Baddbmm": lambda: torch.baddbmm(leaf(3, 2, 2), leaf(3, 2, 2), leaf(3, 2, 2)),
    "Bmm": lambda: torch.bmm(leaf(3, 2, 2), leaf(3, 2, 2)),
    "Cat": lambda: torch.cat([leaf(2), leaf(2)]),
    "Clone": lambda: leaf(2).clone(),
    "Col2Im": lambda: F.fold(leaf(1, 4, 4), 4, 2, stride=2),
    "ConstantPadNd": lambda: F.pad(leaf(2), (1, 1)),
    "Convolution": lambda: F.conv1d(image(4), leaf(2, 2, 1)),
    "Cumsum": lambda: leaf(2).cumsum(0),
    "Diagonal": lambda: leaf(2, 2).diagonal(),
    "Div": lambda: leaf(2) / leaf(2),
    "Embedding": lambda: F.embedding(torch.tensor([0]), leaf(2, 2)),
    "EmbeddingBag": lambda: F.embedding_bag(torch.tensor([[0]]), leaf(2, 2)),
    "Expand": lambda: leaf(1).expand(3),
    "FftC2C": lambda: torch.fft.fft(leaf(4, dtype=torch.complex64)),
    "FftC2R": lambda: torch.fft.irfft(leaf(4, dtype=torch.complex64)),
    "FftR2C": lambda: torch.fft.rfft(leaf(4)),
    "Flip": lambda: leaf(2).flip(0),
    "Hardtanh": lambda: F.hardtanh(leaf(2)),
    "Im2Col": lambda: F.unfold(image(4, 4), 2),
    "LeakyRelu": lambda: F.leaky_relu(leaf(2)),
    "MaskedFill": lambda: leaf(2).masked_fill(torch.tensor([True, False]), 0.0),
    "Mean": lambda: leaf(2).mean(),
    "Mm": lambda: leaf(2, 2) @ leaf(2, 2),
    "Mul": lambda: leaf(2) * leaf(2),
    "Mv": lambda: leaf(2, 2) @ leaf(2),
    "NativeBatchNorm": lambda: nn.BatchNorm1d(2)(leaf(3, 2)),
    "NativeDropout": lambda: torch.native_dropout(leaf(2), 0.5, True)[0],
    "SafeSoftmax": lambda: F.scaled_dot_product_attention(leaf(2, 2), leaf(2, 2), leaf(2, 2)),
    "ScaledDotProductFlashAttentionForCpu": lambda: F.scaled_dot_product_attention(
        *(leaf(1, 1, 2, 2) for _ in range(3))
    ),
    "NativeLayerNorm": lambda: nn.LayerNorm(2)(leaf(3, 2)),
    "NativeGroupNorm": lambda: nn.GroupNorm(1, 2)(leaf(3, 2)),
    "Neg": lambda: -leaf(2),
    "Permute": lambda: leaf(2, 2, 2).permute(2, 0, 1),
    "PixelShuffle": lambda: F.pixel_shuffle(leaf(1, 4, 2, 2), 2),
    "PixelUnshuffle": lambda: F.pixel_unshuffle(leaf(1, 1, 4, 4), 2),
    "ReflectionPad1D": lambda: F.pad(image(4), (1, 1), "reflect"),
    "ReflectionPad2D": lambda: F.pad(image(4, 4), (1, 1, 1, 1), "reflect"),
    "ReflectionPad3D": lambda: F.pad(image(4, 4, 4), (1, 1, 1, 1, 1, 1), "reflect"),
    "Relu": lambda: leaf(2).relu(),
    "Repeat": lambda: leaf(2).repeat(2),
    "ReplicationPad1D": lambda: F.pad(image(4), (1, 1), "replicate"),
    "ReplicationPad2D": lambda: F.pad(image(4, 4), (1, 1, 1, 1), "replicate"),
    "ReplicationPad3D": lambda: F.pad(image(4, 4, 4), (1, 1, 1, 1, 1, 1), "replicate"),
    "Roll": lambda: leaf(2).roll(1),
    "Rsub": lambda: torch.rsub(leaf(2), 1),
    "Select": lambda: leaf(2)[0],
    "Slice": lambda: leaf(2)[:1],
    "Split": lambda: leaf(2).split(1)[0],
    "SplitWithSizes": lambda: torch.split_with_sizes(leaf(3), [1, 2])[0],
    "Squeeze": lambda: leaf(1, 2).squeeze(0),
    "Stack": lambda: torch.stack([leaf(2), leaf(2)]),
    "Sub": lambda: leaf(2) - leaf(2),
    "Sum": lambda: leaf(2).sum(),
    "T": lambda: leaf(2, 2).t(),
    "ToCopy": lambda: leaf(2).double(),
    "Transpose": lambda: leaf(2, 2).transpose(0, 1),
    "Trilinear": lambda: F.bilinear(leaf(2, 2), leaf(2, 2), leaf(2, 2, 2)),
    "Unbind": lambda: leaf(2).unbind()[0],
    "UnsafeView": lambda: leaf(2, 2, 2) @ leaf(2, 2),
    "Unsqueeze": lambda: leaf(2).unsqueeze(0),
    "UpsampleBicubic2D": lambda: F.interpolate(image(4, 4), scale_factor=2, mode="bicubic"),
    "UpsampleBicubic2DAa": lambda: F.interpolate(image(4, 4), size=2, mode="bicubic", antialias=True),
    "UpsampleBilinear2D": lambda: F.interpolate(image(4, 4), scale_factor=2, mode="bilinear"),
    "UpsampleBilinear2DAa": lambda: F.interpolate(image(4, 4), size=2, mode="bilinear", antialias=True),
    "UpsampleLinear1D": lambda: F.interpolate(image(4), scale_factor=2, mode="linear"),
    "UpsampleNearest1D": lambda: F.interpolate(image(4), scale_factor=2),
    "UpsampleNearest2D": lambda: F.interpolate(image(4, 4), scale_factor=2),
    "UpsampleNearest3D": lambda: F.interpolate(image(4, 4, 4), scale_factor=2),
    "UpsampleNearestExact1D": lambda: F.interpolate(image(4), scale_factor=2, mode="nearest-exact"),
    "UpsampleNearestExact2D": lambda: F.interpolate(image(4, 4), scale_factor=2, mode="nearest-exact"),
    "UpsampleNearestExact3D": lambda: F.interpolate(image(4, 4, 4), scale_factor=2, mode="nearest-exact"),
    "UpsampleTrilinear3D": lambda: F.interpolate(image(4, 4, 4), scale_factor=2, mode="trilinear"),
    "View": lambda: leaf(2, 2).view(4),
    "ViewAsComplex": lambda: torch.view_as_complex(leaf(3, 2)),
    "ViewAsReal": lambda: torch.view_as_real(leaf(3, dtype=torch.complex64)),
    "Where": lambda: torch.where(torch.tensor([True, False]), leaf(2), leaf(2)),
    "WeightNormInterface": lambda: parametrizations.weight_norm(nn.Linear(2, 2)).weight,
}
"""What makes a node of each operator that some table of the package names."""

ELSEWHERE = {
    **dict.fromkeys(["CudnnBatchNorm", "CudnnConvolution", "CudnnRnn", "FusedRmsNorm", "GroupedMm"], "CUDA"),
    **dict.fromkeys((f"ScaledDotProduct{kind}Attention" for kind in ("Flash", "Efficient", "Cudnn")), "CUDA"),
    **dict.fromkeys(["MiopenBatchNorm", "MiopenConvolution", "MiopenRnn"], "ROCm"),
    **dict.fromkeys(["MkldnnAdaptiveAvgPool2D", "MkldnnConvolution", "MkldnnLinear"], "tensors of oneDNN's own layout"),
    "MkldnnRnnLayer": "processors and builds with oneDNN",
    **dict.fromkeys(["ConvolutionOverrideable", "SlowConv2D"], "convolutions of other devices"),
    **dict.fromkeys(["Linear", "ReshapeAlias"], "MPS and XLA"),
    **dict.fromkeys(
        ["Bilinear", "ChannelShuffle", "Movedim", "Narrow", "NativeChannelShuffle", "Real"], "compositions today"
    ),
}
"""Operators whose nodes PyTorch makes elsewhere than in float32 on a CPU, and where."""


@pytest.mark.parametrize("name", MAKING)
def test_names_of_operators(name):
    """Look for the operator in ``tools/autograd/derivatives.yaml``, which names the node: ``Addmm`` of ``addmm``.

    Where a new version gives the operation another name, add it to the tables next to the old one.
    """
    assert name in {operator_name(node) for node in graph_of(MAKING[name]())}


def test_every_name_of_a_table_is_tested():
    tables = (
        *(
            operators.MOVES,
            operators.CONVOLUTIONS,
            operators.ENTRYWISE,
            operators.KERNELS,
            operators.LAYOUTS,
            linearity._LINEAR,
            linearity._PRODUCTS,
            linearity._BATCH_NORMS,
        ),
        *(duplicates._TABLES, duplicates._SCALINGS, duplicates._FACTORS, duplicates._RECURRENT),
        *(residual_branches._ADDITIONS, residual_branches._RECTIFIERS),
        *(residual_branches._VIEWS, residual_branches._PERMUTATIONS, {"LeakyRelu", "Div", "Mul", "NativeGroupNorm"}),
    )
    assert {name for table in tables for name in table} == set(MAKING) | set(ELSEWHERE)


def test_name_of_a_reentrant_checkpoint():
    """Look for ``CheckpointFunction`` in ``torch/utils/checkpoint.py``: the autograd function of the re-entrant way."""
    y = checkpoint(lambda x: x.sin(), leaf(2), use_reentrant=True)
    assert operator_name(node_of(y)) == "CheckpointFunctionBackward"


def test_children_of_registered_containers():
    """``SUPPORTED_NODES`` in ``torch/utils/_pytree.py`` holds a function that takes apart and one that rebuilds."""
    children, rebuilt = internals.registered_children({"a": 1, "b": 2})
    assert children == [1, 2]
    assert rebuilt([3, 4]) == {"a": 3, "b": 4}
    assert internals.registered_children(object()) is None


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
def test_the_axis_that_a_node_saves_is_counted_from_the_last_one(axis):
    x = torch.randn(2, 3, 4, requires_grad=True)
    for result in (x.softmax(axis), x.log_softmax(axis), x.cumsum(axis)):
        assert internals.saved_axis(result.grad_fn) == (axis - 3 if axis >= 0 else axis)
    assert internals.saved_axis((x + 1).grad_fn) is None
    assert internals.saved_axis(x.mean((0, 1)).grad_fn) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_outputs_that_are_nested_tensors(layout):
    x = torch.randn(5, 2, requires_grad=True)
    ragged = torch.nested.as_nested_tensor([x[:2], x[2:]], layout=layout)
    assert internals.is_nested_output((ragged * 2).grad_fn, 0)
    assert not internals.is_nested_output((x * 2).grad_fn, 0)


def test_packed_numbers():
    assert not any(map(internals.is_packed, (torch.zeros(2), torch.zeros(2, dtype=torch.float8_e5m2))))
    if hasattr(torch, "float4_e2m1fn_x2"):
        assert internals.is_packed(torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))
