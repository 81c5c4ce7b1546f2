import jax
import jax.numpy as jnp
import pytest

from online_grads import Model, cells, eprop, gradient, memory, rflo, rtrl, snap
from tests.models import MODELS, exact_gradient, of_cell, problem, problem_of, relative_error

STEPS = 10
SPIKING = {"threshold": 0.4, "decay": 0.8}


def run(estimator, given, window=1):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


def leaky(params, h, x, cut):
    drive = params["W_rec"] @ cut(h) + params["W_in"] @ x + params["bias"]
    return 0.4 * h + 0.6 * jnp.tanh(drive)


def lstm(params, state, x, cut):
    drive = params["W"] @ jnp.concatenate([cut(state.h), x]) + params["bias"]
    i, f, g, o = jnp.split(drive, 4)
    c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return cells.LstmHidden(jax.nn.sigmoid(o) * jnp.tanh(c), c)


def surrogate(u):
    """A spike, written apart from the library's: its slope is 0.3 max(0, 1 − |u|)."""
    # its integral, quadratic on both sides of 0, gives the slope; the value is that of the step
    area = 0.3 * jnp.where(jnp.abs(u) < 1, u - jnp.sign(u) * u * u / 2, 0)
    return jax.lax.stop_gradient((u > 0).astype(u.dtype) - area) + area


def lif(params, state, x, cut):
    others = 1 - jnp.eye(state.z.size)
    drive = (params["W_rec"] * others) @ cut(state.z) + params["W_in"] @ x
    v = 0.8 * state.v + drive - 0.4 * jax.lax.stop_gradient(state.z)
    z = jnp.where(state.silent > 0, 0, surrogate((v - 0.4) / 0.4))
    left = jnp.clip(state.silent + 2 * z.astype(jnp.int32) - 1, 0, 2)
    return cells.LifHidden(v, z, left)


def alif(params, state, x, cut):
    others = 1 - jnp.eye(state.z.size)
    drive = (params["W_rec"] * others) @ cut(state.z) + params["W_in"] @ x
    v = 0.8 * state.v + drive - 0.4 * jax.lax.stop_gradient(state.z)
    a = 0.9 * state.a + state.z
    z = surrogate((v - 0.4 - 0.3 * a) / 0.4)
    return cells.AlifHidden(v, a, z, state.silent)


# the library's cell, and the same cell with a place to cut its recurrent input
CUT = {
    "leaky": (cells.vanilla_rnn(3, 4, leak=0.6), leaky),
    "lstm": (cells.lstm(3, 4), lstm),
    "lif": (cells.lif(3, 4, refractory=2, **SPIKING), lif),
    "alif": (cells.alif(3, 4, adaptation_decay=0.9, beta=0.3, **SPIKING), alif),
}


@pytest.mark.parametrize("name", CUT)
def test_no_hops_is_a_stop_gradient_at_the_recurrent_input(name):
    cell, step = CUT[name]
    given = problem_of(of_cell(cell), STEPS)

    def exact(cut):
        transition = lambda params, hidden, x: step(params["cell"], hidden, x, cut)
        return exact_gradient(given.model._replace(transition=transition), *given.args)

    got = run(eprop(given.model), given, window=5)
    assert relative_error(got, exact(jax.lax.stop_gradient)) <= 1e-10
    # the cell with the cut left open is the library's, and its gradient another one
    assert relative_error(exact(lambda h: h), given.exact) <= 1e-10
    assert relative_error(got, given.exact) > 1e-3


@pytest.mark.parametrize("name", [name for name in MODELS if " " not in name])
def test_as_many_hops_as_steps_are_rtrl(name):
    given = problem(name, 5)
    assert relative_error(run(eprop(given.model, hops=4), given), given.exact) <= 1e-10


def test_one_hop_less_is_not_rtrl():
    given = problem("stacked", 5)
    errors = [relative_error(run(eprop(given.model, hops=h), given), given.exact) for h in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 1e-6


def hops_by_hand(given, hops):
    """The recursion with dense tensors, J₀ by hand from the leaky network."""
    model, params, hidden, xs, ys, _ = given
    theta, unflatten = jax.flatten_util.ravel_pytree(params)
    step = lambda theta, h, x: model.transition(unflatten(theta), h, x)
    read = lambda theta, h, y: model.loss(unflatten(theta), h, y)[0]

    def inside(theta, h, x):
        """∂h'/∂h with every product W h held: h enters by the leak alone."""
        cell = unflatten(theta)["cell"]
        cut = lambda inner: leaky(cell, inner, x, lambda _: h)
        return jax.jacobian(cut)(h)

    S = [jnp.zeros((hidden.size, theta.size))] * (hops + 1)
    total, h = 0.0, hidden
    for x, y in zip(xs, ys, strict=True):
        J, immediate = jax.jacobian(step, (1, 0))(theta, h, x)
        held = inside(theta, h, x)
        below = [jnp.zeros_like(S[0]), *S[:-1]]
        S = [held @ s + (J - held) @ b + immediate for s, b in zip(S, below, strict=True)]
        h = step(theta, h, x)
        credit, readout = jax.grad(read, (1, 0))(theta, h, y)
        total = total + credit @ S[-1] + readout
    return unflatten(total / len(xs))


@pytest.mark.parametrize("hops", [0, 1, 2])
def test_hops_count_the_passages_between_units(hops):
    given = problem("vanilla", 6)
    got = run(eprop(given.model, hops=hops), given)
    assert relative_error(got, hops_by_hand(given, hops)) <= 1e-10
    assert relative_error(got, hops_by_hand(given, hops + 1)) > 1e-4


def test_a_sparse_network_keeps_what_its_hops_reach():
    """A ring: every hop adds one unit to what a weight keeps, and info says so."""
    n = 6
    mask = jnp.roll(jnp.eye(n), 1, axis=0)

    def init(key):
        keys = jax.random.split(key, 2)
        params = {"W": jax.random.normal(keys[0], (n, n)), "U": jax.random.normal(keys[1], (n, 3))}
        return params, jnp.zeros(n)

    transition = lambda params, h, x: 0.3 * h + jnp.tanh((params["W"] * mask) @ h + params["U"] @ x)
    loss = lambda params, h, y: (jnp.sum(h) * jnp.sum(y), ())
    given = problem_of(Model(init, transition, loss, MODELS["vanilla"]().example), 8)
    sizes, kept = [], []
    for hops in (0, 1, 2):
        estimator = eprop(given.model, hops=hops)
        state = jax.jit(estimator.init)(given.params, given.hidden, key=jax.random.key(0))
        estimate = jax.jit(estimator.update)(state, given.params, given.xs[:1], given.ys[:1])[1]
        kept.append(int(estimate.info["kept"]))
        sizes.append(memory(estimator, given.params, given.hidden))
    assert kept == [1, 2, 3]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < memory(rtrl(given.model), given.params, given.hidden)
    assert relative_error(run(eprop(given.model, hops=7), given), given.exact) <= 1e-10


def test_a_mask_s_zeros_are_not_kept():
    """One of ten presynaptic entries of each unit is used: the tensors shrink accordingly, and stay exact."""
    n = 10
    mask = jnp.roll(jnp.eye(n), 3, axis=1)

    def init(key):
        return {"W": jax.random.normal(key, (n, n))}, jnp.linspace(0.1, 1.0, n)

    def model(mask):
        transition = lambda params, h, x: jnp.tanh((params["W"] * mask) @ h + jnp.sum(x))
        return Model(
            init, transition, lambda p, h, y: (jnp.sum(h) * jnp.sum(y), ()), MODELS["vanilla"]().example
        )

    sparse, dense = problem_of(model(mask), 6), problem_of(model(jnp.ones((n, n))), 6)
    sizes = [memory(snap(g.model), g.params, g.hidden) for g in (sparse, dense)]
    assert sizes[1] - sizes[0] == 8 * (n * n - n)
    assert relative_error(run(snap(sparse.model, order=5), sparse), sparse.exact) > 1e-10
    assert relative_error(run(snap(sparse.model, order=6), sparse), sparse.exact) <= 1e-10


@pytest.mark.parametrize(
    ("name", "weight", "drive"),
    [
        ("gru_reset_before", r"params\['cell'\]\['W_rz'\]", r"params\['cell'\]\['W_h'\]"),
        ("stacked", r"params\['cell'\]\[0\]", r"params\['cell'\]\[1\]"),
    ],
)
def test_a_cell_that_would_lose_credit_is_refused(name, weight, drive):
    with pytest.raises(ValueError, match=f"eprop is local.*{weight}.*acts on the drive of {drive}"):
        eprop(MODELS[name]())
    eprop(MODELS[name](), hops=1)


def test_a_projection_is_refused():
    projection = of_cell(cells.lstm(3, 4))

    def init(key):
        params, hidden = projection.init(key)
        return {**params, "P": jnp.eye(4)}, hidden

    def transition(params, hidden, x):
        moved = projection.transition(params, hidden, x)
        return moved._replace(h=params["P"] @ moved.h)

    with pytest.raises(ValueError, match=r"params\['cell'\]\['W'\].*on the drive of params\['P'\]"):
        eprop(Model(init, transition, projection.loss, projection.example))


def test_bad_hops():
    with pytest.raises(ValueError, match="hops must be at least 0, got -1"):
        eprop(MODELS["gru"](), hops=-1)
    with pytest.raises(TypeError, match=r"hops must be an integer, got 1\.5"):
        eprop(MODELS["gru"](), hops=1.5)


def filtered_readout(delay):
    """Leaky units, and a leaky readout that is part of the hidden state; the loss reads it alone."""

    def init(key):
        keys = jax.random.split(key, 3)
        params = {
            name: jax.random.normal(k, (4, m)) for name, k, m in zip("WUV", keys, (4, 3, 4), strict=True)
        }
        return params, {"a": jnp.zeros(4), "y": jnp.zeros(4)}

    def transition(params, hidden, x):
        a = 0.5 * hidden["a"] + jnp.tanh(params["W"] @ hidden["a"] + params["U"] @ x)
        return {"a": a, "y": 0.9 * hidden["y"] + params["V"] @ (hidden["a"] if delay else a)}

    return Model(init, transition, lambda p, h, y: (jnp.sum(h["y"][:2] * y), ()), MODELS["vanilla"]().example)


def test_a_gradient_that_would_be_zero_is_refused():
    """What the loss reads is one step away from what the mask keeps."""
    more = r"keep more \(a higher order, more hops\), or use rtrl"
    others = "use eprop with hops=1 or more, snap or rtrl"
    for made, remedy in ((eprop, more), (snap, more), (rflo, others)):
        refusal = rf"{made.__name__} would give params\['W'\] a gradient of zero: .*; {remedy}$"
        with pytest.raises(ValueError, match=refusal):
            made(filtered_readout(delay=True))
    given = problem_of(filtered_readout(delay=True), 6)
    assert relative_error(run(snap(given.model, order=3), given), given.exact) <= 1e-10
    with pytest.raises(ValueError, match=r"params\['W'\], which acts on the drive of params\['V'\]"):
        eprop(filtered_readout(delay=False))


def test_a_recurrent_product_that_is_no_synapse_is_refused():
    """A batch axis inside the hidden state hides what passes between units."""

    def init(key):
        return {"W": jax.random.normal(key, (4, 4))}, jnp.ones((3, 4))

    transition = lambda params, h, x: jnp.tanh(h @ params["W"] + jnp.sum(x))
    model = Model(
        init, transition, lambda p, h, y: (jnp.sum(h) * jnp.sum(y), ()), MODELS["vanilla"]().example
    )
    with pytest.raises(ValueError, match=r"eprop is local, and params\['W'\] meets the hidden state other"):
        eprop(model)
    given = problem_of(model, 6)
    assert relative_error(run(rtrl(given.model), given), given.exact) <= 1e-10


@pytest.mark.parametrize("leak", [lambda d, h: d * h, lambda d, h: jnp.einsum("i,i->i", d, h)])
def test_a_leak_stays_inside_however_it_is_multiplied(leak):
    def init(key):
        keys = jax.random.split(key)
        params = {"W": jax.random.normal(keys[0], (4, 4)), "d": jnp.linspace(0.3, 0.9, 4)}
        return params, jax.random.normal(keys[1], (4,))

    def model(cut):
        transition = lambda p, h, x: leak(p["d"], h) + jnp.tanh(p["W"] @ cut(h) + jnp.sum(x))
        return Model(
            init, transition, lambda p, h, y: (jnp.sum(h) * jnp.sum(y), ()), MODELS["vanilla"]().example
        )

    given = problem_of(model(lambda h: h), 6)
    expected = exact_gradient(model(jax.lax.stop_gradient), *given.args)
    assert relative_error(run(eprop(given.model), given), expected) <= 1e-10


def test_a_weight_with_one_use_that_is_read_is_served():
    """The gradient of a tied weight is not zero where one of its uses reaches what the loss reads."""

    def init(key):
        return {"W": jax.random.normal(key, (4, 4))}, {"a": jnp.ones(4), "y": jnp.ones(4)}

    def transition(params, hidden, x):
        a = jnp.tanh(params["W"] @ hidden["a"] + jnp.sum(x))
        return {"a": a, "y": 0.5 * hidden["y"] + params["W"] @ hidden["a"]}

    loss = lambda params, hidden, y: (jnp.sum(hidden["y"]) * jnp.sum(y), ())
    given = problem_of(Model(init, transition, loss, MODELS["vanilla"]().example), 6)
    assert bool(jnp.any(run(eprop(given.model), given)["W"] != 0))


def test_a_number_that_acts_on_every_unit_does_not_make_them_one():
    """J₀ leads from the shared entry to all units, and from none of them to another."""

    def init(key):
        return {"W": jax.random.normal(key, (4, 4)), "rate": jnp.asarray(0.1)}, {
            "h": jnp.ones(4),
            "t": jnp.ones(()),
        }

    def transition(params, hidden, x):
        h = hidden["t"] * hidden["h"] + jnp.tanh(params["W"] @ hidden["h"] + jnp.sum(x))
        return {"h": h, "t": 0.9 * hidden["t"] + params["rate"]}

    loss = lambda params, hidden, y: (jnp.sum(hidden["h"]) * jnp.sum(y), ())
    given = problem_of(Model(init, transition, loss, MODELS["vanilla"]().example), 6)
    sizes = {made: memory(made(given.model), given.params, given.hidden) for made in (eprop, rflo, snap)}
    # W keeps one entry per use, where a unit of all five would keep five
    assert sizes[eprop] == sizes[rflo] < sizes[snap] - 8 * 3 * 16
