import jax
import jax.numpy as jnp
import pytest

from online_grads import Model, cells, feedback, gradient, losses, memory, rtrl, snap
from online_grads.estimators.past_facing import masked
from online_grads.flat import flatten
from tests.models import EXAMPLE, MODELS, elstm, of_cell, problem, problem_of, relative_error

STEPS = 10
PLAIN = [name for name in MODELS if " " not in name]  # other frameworks' cells are as plain to the estimator


def run(estimator, given, window=1):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


def masked_by_hand(given, order, units):
    """SnAp with a dense influence [n, p], the mask from the numbers themselves; `units` [n, n]."""
    model, params, hidden, xs, ys, _ = given
    theta, unflatten = jax.flatten_util.ravel_pytree(params)
    flat = flatten(hidden)
    h, rest = flat.split(hidden)
    step = lambda theta, h, x: flat.split(model.transition(unflatten(theta), flat.join(h, rest), x))[0]
    loss = lambda theta, h, y: model.loss(unflatten(theta), flat.join(h, rest), y)[0]
    jacobians = jax.jit(lambda h, x: (jax.jacobian(step, 1)(theta, h, x), jax.jacobian(step)(theta, h, x)))
    credits = jax.jit(lambda h, y: jax.grad(loss, (1, 0))(theta, h, y))
    nonzero = [(one != 0).astype(float) for one in jacobians(jnp.linspace(0.2, 0.5, h.size), xs[0])]
    mask = units @ nonzero[1]
    for _ in range(order - 1):
        mask = mask + units @ nonzero[0] @ mask
    M, total = jnp.zeros_like(mask), 0.0
    for x, y in zip(xs, ys, strict=True):
        J, immediate = jacobians(h, x)
        M = jnp.where(mask > 0, J @ M + immediate, 0.0)
        h = step(theta, h, x)
        credit, readout = credits(h, y)
        total = total + credit @ M + readout
    return unflatten(total / STEPS)


def pair(n):
    """Units of an LSTM, whose hidden entries are (h, c)."""
    return jnp.kron(jnp.ones((2, 2)), jnp.eye(n))


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize(
    ("name", "units"),
    [("vanilla", jnp.eye(4)), ("gru", jnp.eye(4)), ("lstm", pair(4)), ("normalised", jnp.eye(4))],
)
def test_order_one_is_the_masked_recursion(name, units, window):
    given = problem(name, STEPS)
    got = run(snap(given.model), given, window)
    assert relative_error(got, masked_by_hand(given, 1, units)) <= 1e-10
    assert relative_error(got, given.exact) > 1e-4


@pytest.mark.parametrize("name", PLAIN)
def test_an_order_that_drops_nothing_is_rtrl(name):
    given = problem(name, STEPS)
    assert relative_error(run(snap(given.model, order=5), given), given.exact) <= 1e-10


def ring(n=5):
    """A tanh network whose unit i is driven by i-1 and itself only."""
    mask = jnp.eye(n) + jnp.roll(jnp.eye(n), 1, axis=0)

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = {"W": (n, n), "U": (n, EXAMPLE[0].size), "out": (EXAMPLE[1].size, n)}
        draw = zip(shapes.items(), keys, strict=True)
        return {name: jax.random.normal(k, shape) for (name, shape), k in draw}, jnp.zeros(n)

    def transition(params, h, x):
        return jnp.tanh((params["W"] * mask) @ h + params["U"] @ x)

    def loss(params, h, y):
        return losses.squared_error(params["out"] @ h, y), ()

    return Model(init, transition, loss, EXAMPLE)


def test_orders_on_a_sparse_network_keep_what_the_structure_reaches():
    given, errors, bytes_kept = problem_of(ring()), [], []
    for order in (1, 2, 3, 5):
        got = run(snap(given.model, order=order), given)
        assert relative_error(got, masked_by_hand(given, order, jnp.eye(5))) <= 1e-10
        errors.append(relative_error(got, given.exact))
        bytes_kept.append(memory(snap(given.model, order=order), given.params, given.hidden))
    assert errors[0] > errors[1] > errors[2] > 1e-6 > errors[3]
    assert errors[3] <= 1e-10
    assert bytes_kept == sorted(set(bytes_kept))
    # a network without zeros in its structure keeps everything at order 2
    dense = problem("vanilla", STEPS)
    assert relative_error(run(snap(dense.model, order=2), dense), dense.exact) <= 1e-10


def test_a_diagonal_cell_is_exact_at_order_one():

    def init(key):
        params = {"decay": jnp.linspace(0.3, 0.9, 4), "U": jax.random.normal(key, (4, EXAMPLE[0].size))}
        return {**params, "out": jnp.ones((EXAMPLE[1].size, 4))}, jnp.zeros(4)

    transition = lambda params, h, x: params["decay"] * jnp.tanh(h) + params["U"] @ x
    loss = lambda params, h, y: (losses.squared_error(params["out"] @ h, y), ())
    given = problem_of(Model(init, transition, loss, EXAMPLE))
    assert relative_error(run(snap(given.model), given), given.exact) <= 1e-10


def columnar_lstm(blocks=2):
    """LSTM columns of two units each that see only themselves: a block-diagonal recurrent matrix."""

    def init(key):
        keys = jax.random.split(key, 3)
        params = {
            "W": jax.random.normal(keys[0], (blocks, 8, 2)),
            "U": jax.random.normal(keys[1], (blocks, 8, EXAMPLE[0].size)),
            "out": jax.random.normal(keys[2], (EXAMPLE[1].size, 2 * blocks)),
        }
        return params, (jnp.zeros((blocks, 2)), jnp.zeros((blocks, 2)))

    def transition(params, state, x):
        h, c = state
        drive = jnp.einsum("bij,bj->bi", params["W"], h) + jnp.einsum("bij,j->bi", params["U"], x)
        i, f, g, o = jnp.split(drive, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def loss(params, state, y):
        return losses.squared_error(params["out"] @ state[0].ravel(), y), ()

    return Model(init, transition, loss, EXAMPLE)


def test_a_block_diagonal_lstm_is_exact_at_the_order_that_fills_its_blocks():
    """Units are (h, c) pairs; two of them in a block reach one another in one more step."""
    given = problem_of(columnar_lstm())
    errors = [relative_error(run(snap(given.model, order=order), given), given.exact) for order in (1, 2)]
    assert errors[1] <= 1e-10 < 1e-3 < errors[0]
    small = memory(snap(given.model, order=2), given.params, given.hidden)
    assert small < 0.6 * memory(rtrl(given.model), given.params, given.hidden)


def test_an_lstm_of_single_unit_columns_is_exact_at_order_one():
    """A diagonal recurrent matrix per gate, as a direct weight; the entries h and c are one unit."""

    def init(key):
        keys = jax.random.split(key, 2)
        params = {
            "w": jax.random.normal(keys[0], (4, 4)),
            "U": jax.random.normal(keys[1], (16, EXAMPLE[0].size)),
            "out": jnp.ones((EXAMPLE[1].size, 4)),
        }
        return params, (jnp.zeros(4), jnp.zeros(4))

    def transition(params, state, x):
        h, c = state
        i, f, g, o = params["w"] * h[None] + (params["U"] @ x).reshape(4, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    loss = lambda params, state, y: (losses.squared_error(params["out"] @ state[0], y), ())
    given = problem_of(Model(init, transition, loss, EXAMPLE))
    assert relative_error(run(snap(given.model), given), given.exact) <= 1e-10


def chain(at_once=False):
    """a acts on b, b on c and c on y, each one step later; the loss sees y, which no step reads.

    With at_once the weight also acts on y itself.
    """
    keys = jax.random.split(jax.random.key(3), 3)
    links = [jax.random.normal(key, (2, 2)) for key in keys]

    def init(key):
        names = ("a", "b", "c", "y")
        return {"w": jax.random.normal(key, (2, EXAMPLE[0].size))}, {name: jnp.zeros(2) for name in names}

    def transition(params, h, x):
        drive = params["w"] @ x
        return {
            "a": jnp.tanh(drive + h["a"] / 2),
            "b": jnp.tanh(links[0] @ h["a"] + h["b"] / 2),
            "c": jnp.tanh(links[1] @ h["b"] + h["c"] / 2),
            "y": links[2] @ h["c"] + (drive if at_once else 0),
        }

    return Model(init, transition, lambda params, h, y: (losses.squared_error(h["y"], y), ()), EXAMPLE)


def test_what_no_step_reads_is_credited_through_the_step():
    given = problem_of(chain())
    with pytest.raises(ValueError, match=r"snap would give params\['w'\] a gradient of zero"):
        snap(given.model, order=2)
    snap(chain(at_once=True), order=1)  # a part of it is enough
    enough = snap(given.model, order=3)
    state = enough.init(given.params, given.hidden, key=jax.random.key(0))
    assert enough.update(state, given.params, given.xs, given.ys)[1].info["kept"] == 5  # not y's entries
    assert relative_error(run(enough, given), given.exact) <= 1e-10


def test_a_feedback_meets_the_influence_of_outputs_too():
    """It has no direct form: what no step reads is kept."""
    model = elstm()
    carried = lambda **options: memory(snap(model, **options), *jax.eval_shape(model.init, jax.random.key(0)))
    assert carried(feedback=feedback.random(jax.random.key(0))) > 2 * carried()


def test_the_weights_of_a_linear_learner_are_units_of_their_own():
    """They meet in the prediction, a product: as in IDBD a step size is blamed for its own weight alone."""
    inner = lambda w, x: x["y"] / 2 * w @ x["x"] ** 2 + (w @ x["x"]) ** 2 / 2
    model = Model(
        init=lambda key: (jnp.full(3, -2.0), jnp.ones(3)),
        transition=lambda beta, w, x: w - jnp.exp(beta) * jax.grad(inner)(w, x),
        loss=lambda beta, w, y: (losses.squared_error(w, y), ()),
        example=({"x": jnp.zeros(3), "y": jnp.zeros(())}, jnp.zeros(3)),
    )
    start = model.init(jax.random.key(0))
    influence = lambda **options: snap(model, **options).init(*start, key=jax.random.key(0)).influence
    assert sum(leaf.size for leaf in jax.tree.leaves(influence())) == 3
    assert sum(leaf.size for leaf in jax.tree.leaves(influence(order=2))) == 9


def kept(model):
    start = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda *start: snap(model).init(*start, key=jax.random.key(0)), *start)
    return sum(leaf.size for leaf in jax.tree.leaves(state.influence))


def gathering(output):
    """Leaky units and an output that reads them all."""

    def transition(params, h, x):
        units = h["units"] / 2 + params["w"] @ x
        return {"units": units, "out": output(units)}

    init = lambda key: ({"w": jnp.ones((4, 3))}, {"units": jnp.zeros(4), "out": jnp.zeros(4)})
    return Model(init, transition, lambda params, h, y: (losses.squared_error(h["out"][:2], y), ()), EXAMPLE)


def test_an_output_joins_no_units():
    assert kept(gathering(lambda units: units / jnp.sqrt(1 + jnp.sum(units**2)))) == 12


def test_a_batched_product_stays_inside_a_unit():
    """Pairs turned by an angle that the input gives: every pair is a unit, however it is written."""

    def model(turn):
        transition = lambda params, h, x: turn(x[0], h) + (params["w"] @ x).reshape(2, 2)
        loss = lambda params, h, y: (losses.squared_error(h[0], y), ())
        return Model(lambda key: ({"w": jnp.ones((4, 3))}, jnp.zeros((2, 2))), transition, loss, EXAMPLE)

    def product(angle, h):
        turned = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        return jnp.einsum("cij,cj->ci", jnp.stack([turned, turned]), h)

    def written_out(angle, h):
        c, s = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([c * h[:, 0] - s * h[:, 1], s * h[:, 0] + c * h[:, 1]], axis=1)

    assert kept(model(product)) == kept(model(written_out)) == 2 * 12
    assert kept(model(lambda angle, h: h / 2)) == 12


def test_the_number_of_kept_entries_is_reported():
    for name, order, kept in (("gru", 1, 1), ("lstm", 1, 2), ("lstm", 2, 8)):
        given = problem(name, STEPS)
        estimator = snap(given.model, order=order)
        state = estimator.init(given.params, given.hidden, key=jax.random.key(0))
        _, estimate = estimator.update(state, given.params, given.xs, given.ys)
        assert int(estimate.info["kept"]) == kept


def test_memory_is_that_of_the_parameters():
    """K entries per weight: one for a GRU, (h, c) for an LSTM, against n for rtrl."""
    for cell, kept in ((cells.gru(3, 16), 1), (cells.lstm(3, 16), 2)):
        model = of_cell(cell)
        params, hidden = model.init(jax.random.key(0))
        cell_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params["cell"]))
        small = sum(leaf.nbytes for leaf in jax.tree.leaves(hidden)) + 8  # the key
        assert memory(snap(model), params, hidden) - small == kept * cell_bytes
        assert memory(rtrl(model), params, hidden) > 8 * kept * cell_bytes


def test_bad_arguments(monkeypatch):
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        snap(MODELS["gru"](), order=0)
    monkeypatch.setattr(masked, "DENSE_LIMIT", 3)
    with pytest.raises(ValueError, match=r"params\['decay'\].*4 products a step.*limit of 3"):
        snap(MODELS["normalised"]())


def test_both_layouts_agree(monkeypatch):
    """Arrays like the weight below FEW entries, stacked ones above it."""
    given = problem("lstm", STEPS)
    few = run(snap(given.model), given)
    monkeypatch.setattr(masked, "FEW", 0)
    many = run(snap(given.model), given)
    assert relative_error(many, few) <= 1e-12
    assert relative_error(many, given.exact) > 1e-4
