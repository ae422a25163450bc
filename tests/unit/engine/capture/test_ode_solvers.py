"""Steps of the solvers of torchdiffeq: their Jacobians and durations. The library itself stays unchanged."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from pytest_trainability import measure
from pytest_trainability.engine.capture.chain import Chain, graph_of
from pytest_trainability.engine.capture.recorder import Capture, capture
from pytest_trainability.engine.capture.recurrence import chain_along, choose_recurrence, find_recurrences
from pytest_trainability.engine.jacobian.sample_independence import find_trajectories
from pytest_trainability.engine.jacobian.trajectories import Division
from pytest_trainability.engine.jacobian.vjp import pull_back, random_cotangents
from pytest_trainability.engine.runs.ensemble import ALONG_TIME
from pytest_trainability.engine.trees import tensors_in
from pytest_trainability.errors import CutError, ModelError

torchdiffeq = pytest.importorskip("torchdiffeq")
odeint, odeint_adjoint = torchdiffeq.odeint, torchdiffeq.odeint_adjoint
# The package's attribute of that name is the function.
IMPLEMENTATION = sys.modules["torchdiffeq._impl.odeint"]
ADJOINT = sys.modules["torchdiffeq._impl.adjoint"]

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
WIDTH, BATCH = 3, 2


class Field(nn.Module):
    """A smooth vector field that depends on time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.mix(y)) * (1 + 0.5 * t)


class Model(nn.Module):
    """A model of some modules and a function that integrates with them."""

    def __init__(self, run: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, y: Tensor) -> Any:
        return self.run(self, y)


def model(run: Callable[..., Any], **modules: Any) -> Model:
    net = Model(run, **(modules or {"func": Field()})).double()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.GRUCell)):
            module.reset_parameters()
    return net


def start(*shape: int) -> Tensor:
    return torch.randn(shape or (BATCH, WIDTH), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


EVEN = times(0.0, 0.25, 0.5, 0.75, 1.0)


def capture_along_time(net: nn.Module, y: Tensor) -> Capture:
    torch.manual_seed(5)
    return capture(net, (y,), {}, instruments=ALONG_TIME)


def chain_of_time(captured: Capture, name: str = "") -> Chain:
    return chain_along(choose_recurrence(captured, find_recurrences(captured, graph_of(captured)), name))


def cut(net: nn.Module, y: Tensor, name: str = "") -> Chain:
    return chain_of_time(capture_along_time(net, y), name)


def product(chain: Chain, columns: Any) -> Any:
    for index in range(len(chain), 0, -1):
        columns = pull_back(chain, index, columns)
    return columns


def jacobian(chain: Chain) -> Tensor:
    """Return the Jacobian of a chain with one tensor at each end, ``(outputs, inputs)``."""
    ((shape, _),) = chain.shapes(len(chain))
    (found,) = product(chain, [torch.eye(shape.numel(), dtype=torch.float64).reshape(-1, *shape)])
    return found.reshape(shape.numel(), -1)


def end_to_end(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    matrix = torch.autograd.functional.jacobian(function, y)
    return matrix.reshape(-1, y.numel())


def assert_one_backward(chain: Chain) -> None:
    first, last = chain.cut.states[0], chain.cut.states[-1]
    columns = random_cotangents(chain, 1, 3)
    expected = torch.autograd.grad(
        [GradientEdge(*edge) for edge in last],
        [GradientEdge(*edge) for edge in first],
        [c[0] for c in columns if c is not None],
        retain_graph=True,
    )
    for found, true in zip(product(chain, columns), expected):
        # A few forks per step, summed in another order.
        torch.testing.assert_close(found[0], true, rtol=0, atol=256 * 2.2e-16 * float(true.abs().max()))


def assert_untouched(net: nn.Module, y: Tensor) -> Capture:
    """Run the model with and without instruments: outputs are equal bit for bit, and the library is unchanged."""
    table, method = dict(IMPLEMENTATION.SOLVERS), ADJOINT.OdeintAdjointMethod
    expected = list(tensors_in(net(y)))
    captured = capture_along_time(net, y)
    found = list(tensors_in(captured.output))
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert table == IMPLEMENTATION.SOLVERS and method is ADJOINT.OdeintAdjointMethod
    return captured


# Every method ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
def test_every_method_has_its_steps(method: str) -> None:
    """Check steps, durations, trajectories, a product that equals one backward pass, and unchanged outputs."""
    net = model(lambda m, y: odeint(m.func, y, EVEN, method=method, rtol=1e-3, atol=1e-4))
    captured = assert_untouched(net, start())
    chain = chain_of_time(captured)
    assert_one_backward(chain)
    assert chain.names == tuple(f"func[{t}]" for t in range(len(chain)))
    assert {call.inner for call in chain.steps} == {f"{method} step"}
    assert find_trajectories(chain, BATCH, 0)[0].division == Division(BATCH)
    assert [tuple(shape) for shape, _ in chain.shapes(0)] == [(BATCH, WIDTH)]
    assert [tuple(shape) for shape, _ in chain.shapes(len(chain))] == [(BATCH, WIDTH)]
    if method in FIXED:
        assert chain.durations == pytest.approx([0.25] * 4, abs=1e-15)
    else:
        # The last step goes beyond the end, where the solution is interpolated.
        assert sum(chain.durations) >= 1 > sum(chain.durations[:-1])
        assert len(chain) > 1


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_the_chain_on_a_fixed_grid_has_the_whole_jacobian(method: str, backwards: bool) -> None:
    """It equals the Jacobian from y_0 to y_T by autograd. Earlier slopes are part of the state of Adams methods."""
    t = EVEN.flip(0) if backwards else EVEN
    net = model(lambda m, y: odeint(m.func, y, t, method=method, options={"step_size": 0.1}))
    expected = end_to_end(lambda y: net(y)[-1], start())
    chain = cut(net, start())
    assert len(chain) == 10
    # Ten factors near the identity.
    torch.testing.assert_close(jacobian(chain), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_the_chain_of_an_adaptive_solver_has_the_whole_jacobian(method: str, backwards: bool) -> None:
    """If the first step is given and the last one ends at the last point, nothing else depends on the state."""
    t = EVEN.flip(0) if backwards else EVEN
    options = {"first_step": 0.1, "step_t": t[-1:]}
    net = model(lambda m, y: odeint(m.func, y, t, method=method, rtol=1e-3, atol=1e-4, options=options))
    expected = end_to_end(lambda y: net(y)[-1], start())
    chain = cut(net, start())
    assert sum(chain.durations) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(jacobian(chain), expected, rtol=1e-11, atol=1e-12)


def by_hand(method: str, f: Callable[[float, Tensor], Tensor], t: float, h: float, y: Tensor) -> Tensor:
    k1 = f(t, y)
    if method == "euler":
        return y + h * k1
    k2 = f(t + h / 2, y + h / 2 * k1)
    if method == "midpoint":
        return y + h * k2
    # The method that torchdiffeq calls rk4 is the 3/8 rule.
    k2 = f(t + h / 3, y + h * k1 / 3)
    k3 = f(t + 2 * h / 3, y + h * (k2 - k1 / 3))
    k4 = f(t + h, y + h * (k1 - k2 + k3))
    return y + h / 8 * (k1 + 3 * (k2 + k3) + k4)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_each_step_is_the_one_written_by_hand(method: str) -> None:
    """The Jacobian of each segment equals that of the step, on an uneven grid."""
    grid = (0.0, 0.1, 0.4, 0.5, 1.0)
    net = model(lambda m, y: odeint(m.func, y, times(*grid), method=method))
    chain, y = cut(net, start()), start()

    def field(t: float, y: Tensor) -> Tensor:
        return torch.tanh(y @ net.func.mix.weight.T + net.func.mix.bias) * (1 + 0.5 * t)

    assert chain.durations == pytest.approx([b - a for a, b in itertools.pairwise(grid)], abs=1e-15)
    identity = torch.eye(y.numel(), dtype=torch.float64).reshape(-1, *y.shape)
    for index, (a, b) in enumerate(itertools.pairwise(grid), 1):
        expected = end_to_end(lambda s, a=a, b=b: by_hand(method, field, a, b - a, s), y)
        (found,) = pull_back(chain, index, [identity])
        torch.testing.assert_close(found.reshape(y.numel(), -1), expected, rtol=1e-12, atol=1e-13)
        y = by_hand(method, field, a, b - a, y).detach()


# Exponents per unit of time ----------------------------------------------------------------------------------------------

RATE, FAST, TURN = 0.3, -1.0, 2.0
MATRIX = times(RATE, -TURN, 0, TURN, RATE, 0, 0, 0, FAST).reshape(3, 3)
"""A normal matrix: a Runge-Kutta step multiplies each eigenvector by the stability polynomial of its eigenvalue."""
ORDERS = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(MATRIX.clone())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.matrix.T


def stability(order: int, step: float) -> list[float]:
    """Return ``ln |R(h λ)| / h`` for the eigenvalues of the matrix, largest first. R is the truncated exponential series."""
    growth = []
    for eigenvalue in (complex(RATE, TURN), complex(RATE, -TURN), complex(FAST, 0)):
        z = step * eigenvalue
        growth.append(math.log(abs(sum(z**k / math.factorial(k) for k in range(order + 1)))) / step)
    return sorted(growth, reverse=True)


def exponents(net: nn.Module, alignment: int, **options: Any) -> list[float]:
    result = measure(net, start(), steps="time", exponents=3, alignment=alignment, **options)
    return [float(e) for e in result.lyapunov_spectrum]


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("step", [0.1, 0.2])
def test_exponents_of_a_linear_field_are_those_of_the_method(method: str, step: float) -> None:
    """They are the real parts of the eigenvalues to the order of the method, and those of the discrete map to round-off."""
    net = model(
        lambda m, y: odeint(m.func, y, times(0.0, 12.0), method=method, options={"step_size": step}), func=Linear()
    )
    found = exponents(net, alignment=round(10 / step))
    # After ten units of time the frame is within e^-13 of its directions, and the error is of second order in that.
    assert found == pytest.approx(stability(ORDERS[method], step), abs=1e-10)
    # |λ| h is below 1/2. The first term of the series that is missing is (|λ| h)^(p + 1) / (p + 1)!, divided by h.
    error = 2.1 * (2.1 * step) ** ORDERS[method] / math.factorial(ORDERS[method] + 1)
    assert found == pytest.approx([RATE, RATE, FAST], abs=error)


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "dopri8"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_exponents_of_an_adaptive_solver(method: str, backwards: bool) -> None:
    """They do not depend on the sizes of its steps. All signs change if time runs backwards."""
    t = times(3.0, 0.0) if backwards else times(0.0, 3.0)
    net = model(lambda m, y: odeint(m.func, y, t, method=method, rtol=1e-4, atol=1e-5), func=Linear())
    chain = cut(net, start())
    span = sum(chain.durations)
    # The error of a step is below 1e-4 of the norm of the state. The smallest component is e^-4 of it at the end: 6e-3.
    tolerance = 6e-3 * len(chain) / span
    expected = [-FAST, -RATE, -RATE] if backwards else [RATE, RATE, FAST]
    # The matrix is normal: the singular values of the flow are the exponentials of the real parts.
    values = torch.linalg.svdvals(jacobian(chain)[:WIDTH, :WIDTH]).log() / span
    assert values.tolist() == pytest.approx(expected, abs=tolerance)
    assert sum(exponents(net, alignment=0)) == pytest.approx(float(values.sum()), abs=1e-10)


def test_exponents_are_per_unit_of_time() -> None:
    """Twice the field for half the time is the same map, with twice the exponents."""

    class Twice(Linear):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return 2 * super().forward(t, y)

    def run(m: Any, y: Tensor) -> Tensor:
        return odeint(m.func, y, m.times, method="rk4")

    slow = model(run, func=Linear())
    fast = model(run, func=Twice())
    slow.times, fast.times = times(0.0, 0.2, 0.4, 0.6), times(0.0, 0.1, 0.2, 0.3)
    one, two = (measure(net, start(), steps="time") for net in (slow, fast))
    assert float(two.lyapunov_max) == pytest.approx(2 * float(one.lyapunov_max), rel=1e-12)
    assert float(two.log_gain) == pytest.approx(float(one.log_gain), rel=1e-12)
    assert float(one.lyapunov_max) == pytest.approx(float(one.log_gain) / 0.6, rel=1e-12)


def test_the_memory_horizon_is_a_time() -> None:
    """For a uniform rate of contraction it is ln 100 divided by the rate of the discrete map."""
    net = model(
        lambda m, y: odeint(lambda t, y: -2.0 * y * m.one, y, EVEN, method="rk4"), one=nn.Parameter(torch.ones(1))
    )
    result = measure(net, start(), steps="time", measures=["memory_horizon"])
    z = -0.5
    factor = 1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24
    assert float(result.memory_horizon) == pytest.approx(0.25 * math.log(100) / -math.log(factor), rel=1e-12)


def test_the_spectral_radius_of_a_step() -> None:
    """It is the modulus of the stability polynomial at the leading eigenvalue."""
    net = model(lambda m, y: odeint(m.func, y, times(0.0, 0.2, 0.4, 0.6, 0.8), method="rk4"), func=Linear())
    result = measure(net, start(), steps="time", measures=["spectral_radius"])
    expected = math.exp(0.2 * stability(4, 0.2)[0])
    assert [float(v) for v in result.spectral_radius.values()] == pytest.approx([expected] * 4, rel=1e-12)


# How it is called -----------------------------------------------------------------------------------------------------------


class Rotation(nn.Module):
    """A field whose state is two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q, p = state
        return torch.tanh(self.mix(p)), -q


class Bound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.mix(y))

    def forward(self, y: Tensor) -> Tensor:
        return odeint(self.slope, y, EVEN, method="rk4")[-1]


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_tuple_states_are_one_tensor(method: str) -> None:
    """The library flattens the tuple into one tensor without a sample dimension, so that the trajectory is joint."""
    net = model(lambda m, y: odeint(m.func, (y, 2 * y), EVEN, method=method), func=Rotation())
    chain = chain_of_time(assert_untouched(net, start()))
    assert_one_backward(chain)
    assert [tuple(shape) for shape, _ in chain.shapes(0)] == [(2 * BATCH * WIDTH,)]
    assert measure(net, start(), steps="time").frame == "joint"


@pytest.mark.parametrize(
    ("run", "modules", "name"),
    [
        (
            lambda m, y: odeint(lambda t, y: torch.tanh(m.mix(y)), y, EVEN, method="rk4"),
            {"mix": nn.Linear(WIDTH, WIDTH)},
            "odeint",
        ),
        (lambda m, y: m.block(y), {"block": Bound()}, "block"),
        (lambda m, y: odeint(m.func, y, EVEN, method="rk4"), {"func": Field()}, "func"),
    ],
    ids=["lambda", "bound-method", "module"],
)
def test_steps_are_named_after_a_module(run: Callable[..., Any], modules: dict[str, nn.Module], name: str) -> None:
    """The name is the path of the integrated module, or of the module that called the solver."""
    net = model(run, **modules)
    captured = assert_untouched(net, start())
    chain = chain_of_time(captured)
    assert chain.names == tuple(f"{name}[{t}]" for t in range(4))
    assert chain_of_time(captured, name).names == chain.names


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("tuples", [False, True], ids=["tensor", "tuple"])
def test_odeint_adjoint_is_measured_as_odeint(method: str, tuples: bool) -> None:
    """Chain and gradients of the parameters are those of odeint, and a note reports it."""

    def run(solve: Callable[..., Any]) -> Model:
        field = Rotation() if tuples else Field()
        return model(lambda m, y: solve(m.func, (y, -y) if tuples else y, EVEN.flip(0), method=method), func=field)

    with_adjoint, plain = run(odeint_adjoint), run(odeint)
    assert_untouched(with_adjoint, start())
    one, other = (measure(net, start(), steps="time") for net in (with_adjoint, plain))
    assert one.steps.names == other.steps.names
    assert float(one.log_gain) == float(other.log_gain)
    assert [float(g) for g in one.gradient_norm.values()] == [float(g) for g in other.gradient_norm.values()]
    assert any("odeint_adjoint" in note for note in one.notes) and not any("adjoint" in note for note in other.notes)
    assert all(float(g) > 0 for g in one.gradient_norm.values())


def test_the_initial_value_may_be_a_constant_or_a_parameter() -> None:
    """Neither depends on the input of the model. Both are the first state of the chain."""
    for kind in ("constant", "parameter", "expanded"):
        torch.manual_seed(0)
        first = nn.Parameter(start(1, WIDTH) if kind == "expanded" else start())
        if kind == "constant":
            first.requires_grad_(False)
        net = model(
            lambda m, y: odeint(m.func, m.first.expand(BATCH, -1), EVEN, method="rk4")[-1] + y,
            func=Field(),
            first=first,
        )
        chain = chain_of_time(assert_untouched(net, start()))
        expected = end_to_end(
            lambda y, net=net: odeint(net.func, y, EVEN, method="rk4")[-1], net.first.detach().expand(BATCH, -1).clone()
        )
        torch.testing.assert_close(jacobian(chain), expected, rtol=1e-12, atol=1e-13)
        gradient = measure(net, start(), steps="time").gradient_norm
        assert ("first" in gradient) == (kind != "constant")


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_output_times_do_not_change_the_steps(method: str) -> None:
    """A solver takes the same steps for any number of output times between them."""
    many = torch.linspace(0, 1, 37, dtype=torch.float64)
    options = {"step_size": 0.2} if method == "rk4" else {}
    few, more = (
        cut(model(lambda m, y, t=t: odeint(m.func, y, t, method=method, options=options)), start())
        for t in (times(0.0, 1.0), many)
    )
    assert few.durations == pytest.approx(more.durations, abs=1e-15)
    torch.testing.assert_close(jacobian(few), jacobian(more), rtol=1e-14, atol=1e-15)


def test_the_chain_does_not_depend_on_what_the_model_reads() -> None:
    """The model may read a point in the middle, or the sum of some points."""
    whole = cut(model(lambda m, y: odeint(m.func, y, EVEN, method="rk4")), start())
    for read in (lambda s: s[1], lambda s: s[2:4].sum(0), lambda s: s[0]):
        net = model(lambda m, y, read=read: read(odeint(m.func, y, EVEN, method="rk4")) + 0 * m.func.mix.bias)
        assert len(chain_of_time(capture_along_time(net, start()))) == len(whole)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_times_may_carry_a_gradient(method: str) -> None:
    """The gradient of a learned time span is the same with and without instruments."""

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.func = Field()
            self.span = nn.Parameter(torch.tensor(0.8))

        def forward(self, y: Tensor) -> Tensor:
            t = torch.stack([torch.zeros_like(self.span), 0.5 * self.span, self.span])
            return odeint(self.func, y, t, method=method, options={"first_step": 0.1} if method == "dopri5" else {})[-1]

    net = Learned().double()
    watched, plain = (measure(net, start(), steps=steps).gradient_norm for steps in ("time", "layers"))
    for name in ("span", "func.mix.weight", "func.mix.bias"):
        # The same operations, with sums over forks in another order.
        assert float(watched[name]) == pytest.approx(float(plain[name]), rel=1e-12)


def test_times_may_be_an_input() -> None:
    """Float inputs carry gradients. A warning that only the package causes must not appear."""

    class OfTimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.func = Field()

        def forward(self, y: Tensor, t: Tensor) -> Tensor:
            return odeint(self.func, y, t, method="rk4")[-1]

    # PyTorch gives this warning once per process by default.
    usual = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        assert len(measure(OfTimes().double(), (start(), EVEN), steps="time").steps) == 4
    finally:
        torch.set_warn_always(usual)


def test_cubic_interpolation_and_user_defined_grids() -> None:
    """Cubic interpolation evaluates the field again. A grid constructor may return any grid."""
    grid = torch.linspace(0, 1, 8, dtype=torch.float64)
    for options, steps in (
        ({"step_size": 0.15, "interp": "cubic", "perturb": True}, 7),
        ({"grid_constructor": lambda func, y0, t: grid}, 7),
    ):
        net = model(lambda m, y, options=options: odeint(m.func, y, EVEN, method="midpoint", options=options))
        chain = chain_of_time(assert_untouched(net, start()))
        assert len(chain) == steps and sum(chain.durations) == pytest.approx(1, abs=1e-14)
        expected = end_to_end(lambda y, net=net: net(y)[-1], start())
        torch.testing.assert_close(jacobian(chain), expected, rtol=1e-12, atol=1e-13)


def test_rejected_solver_steps_are_not_chain_steps() -> None:
    """A first step that is far too long is repeated. Accepted steps are those for which the solver calls the callback."""

    class Counting(Field):
        def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            seen.append("step")

        def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            seen.append("accepted")

        def callback_reject_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            seen.append("rejected")

    seen: list[str] = []
    options = {"first_step": 4.0}
    net = model(lambda m, y: odeint(m.func, y, times(0.0, 4.0), rtol=1e-8, atol=1e-9, options=options), func=Counting())
    net(start())
    expected, seen[:] = list(seen), []
    chain = cut(net, start())
    assert seen == expected and "rejected" in seen
    assert len(chain) == seen.count("accepted")
    assert_one_backward(chain)


def test_callbacks_of_a_field_on_a_fixed_grid_are_called() -> None:
    class Counting(Field):
        def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
            seen.append((float(t0), float(dt)))

    seen: list[tuple[float, float]] = []
    net = model(lambda m, y: odeint(m.func, y, EVEN, method="euler"), func=Counting())
    assert_untouched(net, start())
    assert seen == [(0.25 * t, 0.25) for t in range(4)] * 2


def until(moment: float) -> Callable[[Tensor, Any], Tensor]:
    return lambda t, y: t - moment


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "rk4"])
def test_a_solution_up_to_an_event_has_the_steps_of_the_solver(method: str) -> None:
    options = {"step_size": 0.1} if method == "rk4" else {"first_step": 0.1}
    net = model(
        lambda m, y: odeint(m.func, y, times(0.0, 1.0), event_fn=until(0.55), method=method, options=options)[1]
    )
    chain = chain_of_time(assert_untouched(net, start()))
    assert_one_backward(chain)
    assert {call.inner for call in chain.steps} == {f"{method} step"}
    # The chain of an adaptive solver ends at the event, to the accuracy of the root. On a fixed grid it ends with the last step.
    assert sum(chain.durations) == pytest.approx(0.6 if method == "rk4" else 0.55, abs=1e-6)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_solutions_in_a_row_are_one_chain(method: str) -> None:
    """The same field is integrated again from the end of the solution before."""

    def run(m: Any, y: Tensor) -> Tensor:
        for _ in range(3):
            y = odeint(m.func, y, EVEN, method=method, options={} if method == "rk4" else {"step_t": EVEN[-1:]})[-1]
        return y

    net = model(run)
    chain = chain_of_time(assert_untouched(net, start()))
    assert_one_backward(chain)
    assert sum(chain.durations) == pytest.approx(3, abs=1e-12)
    if method == "rk4":
        assert len(chain) == 12
        torch.testing.assert_close(jacobian(chain), end_to_end(net, start()), rtol=1e-12, atol=1e-13)


def test_solutions_in_a_row_have_a_trajectory_per_sample() -> None:
    """Samples do not interact in one solution, and neither in two."""

    def run(m: Any, y: Tensor) -> Tensor:
        for _ in range(2):
            y = odeint(m.func, y, EVEN, method="rk4")[-1]
        return y

    assert measure(model(run), start(), steps="time").frame == "per sample"


def test_two_fields_are_two_recurrences() -> None:
    def run(m: Any, y: Tensor) -> Tensor:
        y = odeint(m.a, y, EVEN, method="rk4")[-1]
        return odeint(m.b, y, times(0.0, 0.5, 1.0), method="rk4")[-1]

    net = model(run, a=Field(), b=Field())
    captured = assert_untouched(net, start())
    assert [(r.name, len(r), r.sequences) for r in find_recurrences(captured, graph_of(captured))] == [
        ("a", 4, 1),
        ("b", 2, 1),
    ]
    result = measure(net, start(), steps="time:b", measures=["recurrence_lyapunov_max"])
    assert result.steps.names == ("b[0]", "b[1]")
    assert set(result.recurrence_lyapunov_max.keys()) == {"a", "b"}


def test_recurrences_have_unique_names() -> None:
    def run(m: Any, y: Tensor) -> Tensor:
        y = odeint(m.func, y, EVEN, method="rk4")[-1]
        return odeint(m.func, y, times(0.0, 0.5, 1.0), method="euler")[-1]

    captured = capture_along_time(model(run), start())
    names = [r.name for r in find_recurrences(captured, graph_of(captured))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("substeps", [1, 2])
def test_ode_rnn_is_one_recurrence(substeps: int) -> None:
    """The state evolves in time, and then a cell updates it. The chain contains both."""

    def run(m: Any, y: Tensor) -> Tensor:
        h = torch.zeros_like(y)
        for _ in range(3):
            h = odeint(m.func, h, torch.linspace(0, 1, substeps + 1, dtype=torch.float64), method="euler")[-1]
            h = m.cell(y, h)
        return h

    net = model(run, func=Field(), cell=nn.GRUCell(WIDTH, WIDTH))

    def by_hand(h: Tensor) -> Tensor:
        for index in range(3):
            for step in range(substeps):
                h = h + net.func(times(step / substeps), h) / substeps
            # If the steps of the chain are solver steps, the chain ends with the last one of them.
            if substeps == 1 or index < 2:
                h = net.cell(start(), h)
        return h

    chain = cut(net, start())
    assert len(chain) == 3 * substeps
    torch.testing.assert_close(jacobian(chain), end_to_end(by_hand, torch.zeros_like(start())), rtol=1e-12, atol=1e-13)


def test_a_single_point_of_time_has_no_step() -> None:
    """Nothing is integrated. A recurrence after it is found."""

    def run(m: Any, y: Tensor) -> Tensor:
        h = odeint(m.func, y, EVEN[:1])[-1]
        for _ in range(3):
            h = m.cell(y, h)
        return h

    net = model(run, func=Field(), cell=nn.GRUCell(WIDTH, WIDTH))
    chain = chain_of_time(assert_untouched(net, start()))
    assert chain.names == ("cell[0]", "cell[1]", "cell[2]")
    alone = model(lambda m, y: m.mix(odeint(m.func, y, EVEN[:1])[-1]), func=Field(), mix=nn.Linear(WIDTH, WIDTH))
    with pytest.raises(CutError, match="needs a recurrence"):
        measure(alone, start(), steps="time")


def test_a_solution_without_a_gradient_has_no_steps() -> None:
    """Solutions under no_grad are not recorded, and their values are unchanged."""

    def run(m: Any, y: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = odeint(m.func, y, EVEN, method="rk4")[-1]
        return odeint(m.after, fixed, EVEN, method="euler")[-1]

    chain = chain_of_time(assert_untouched(model(run, func=Field(), after=Field()), start()))
    assert chain.names == tuple(f"after[{t}]" for t in range(4))


# The library is left as it was ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("adjoint", [False, True], ids=["plain", "adjoint"])
def test_the_library_is_restored_after_an_error(method: str, adjoint: bool) -> None:
    """The field raises in the middle of a step."""

    class Broken(Field):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            if t > 0.6:
                msg = "boom"
                raise ValueError(msg)
            return super().forward(t, y)

    table, own = dict(IMPLEMENTATION.SOLVERS), ADJOINT.OdeintAdjointMethod
    solve = odeint_adjoint if adjoint else odeint
    net = model(lambda m, y: solve(m.func, y, EVEN, method=method), func=Broken())
    with pytest.raises(ModelError, match="boom"):
        measure(net, start(), steps="time")
    assert table == IMPLEMENTATION.SOLVERS and ADJOINT.OdeintAdjointMethod is own
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    with pytest.raises(ValueError, match="boom"):
        net(start())


def test_the_library_is_unchanged_along_depth() -> None:
    """Steps of a solver are recorded along time only."""
    seen = []

    def run(m: Any, y: Tensor) -> Tensor:
        seen.append((IMPLEMENTATION.SOLVERS["rk4"], ADJOINT.OdeintAdjointMethod))
        return m.last(odeint(m.func, m.first(y), EVEN, method="rk4")[-1])

    net = model(run, first=nn.Linear(WIDTH, WIDTH), func=Field(), last=nn.Linear(WIDTH, WIDTH))
    measure(net, start(), steps="layers")
    measure(net, start(), steps="time")
    (plain, method), (watched, other) = seen
    assert plain is IMPLEMENTATION.SOLVERS["rk4"] and method is ADJOINT.OdeintAdjointMethod
    assert watched is not plain and issubclass(watched, plain) and other is not method


def test_the_forward_pass_may_import_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models for which the library is optional import it there."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchdiffeq"]:
        monkeypatch.delitem(sys.modules, name)

    def run(m: Any, y: Tensor) -> Tensor:
        from torchdiffeq import odeint

        return odeint(m.func, y, EVEN, method="rk4")[-1]

    result = measure(lambda: model(run), start(), steps="time", seeds=2)
    assert result.steps.description == "4 × rk4 step"
    assert all(len(reading["growth_rate"]) == 4 for reading in result._seed_runs.common.readings)


@pytest.mark.filterwarnings("ignore:The following arguments have no effect")
def test_unknown_and_scipy_methods_are_left_to_the_library() -> None:
    """Methods that are not PyTorch solvers are not recorded, and raise the same errors as without instruments."""
    net = model(lambda m, y: odeint(m.func, y, EVEN, method="nonsense"))
    with pytest.raises(ModelError, match="Invalid method"):
        measure(net, start(), steps="time")
    through_numpy = model(lambda m, y: odeint(m.func, y, EVEN, method="scipy_solver", options={"solver": "RK45"}))
    with pytest.raises(ModelError, match="must carry a gradient"):
        measure(through_numpy, start(), steps="time")


def test_an_unknown_version_of_the_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is left alone if a method that the package overrides does not exist."""
    monkeypatch.delattr(sys.modules["torchdiffeq._impl.solvers"].FixedGridODESolver, "_cubic_hermite_interp")
    seen = []

    def run(m: Any, y: Tensor) -> Tensor:
        seen.append(dict(IMPLEMENTATION.SOLVERS))
        return odeint(m.func, y, EVEN, method="rk4")[-1]

    captured = capture_along_time(model(run), start())
    assert captured.notes == ["the steps of ODE solvers are not recorded: this version of torchdiffeq is unknown"]
    assert seen == [IMPLEMENTATION.SOLVERS] and not any(call.inner for call in captured.calls)


def test_same_seed_same_steps() -> None:
    """The steps of an adaptive solver depend on the weights. Each seed repeats its own steps."""
    results = [
        measure(
            lambda: Model(lambda m, y: odeint(m.func, y, EVEN), func=Field()).double(), start(), steps="time", seeds=2
        )
        for _ in range(2)
    ]
    assert results[0].log_gain.values == results[1].log_gain.values
    assert results[0].steps == results[1].steps
