"""Credit in time inside layers, within a step between them: against layers that are differentiated alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from online_grads import (
    Model,
    cells,
    eprop,
    fbptt,
    gradient,
    hidden_of,
    kernl,
    losses,
    memory,
    ostl,
    rtrl,
    snap,
    uoro,
)
from online_grads.signatures import expected, fits, options
from tests.models import (
    EXAMPLE,
    HIDDEN,
    INPUTS,
    OUTPUTS,
    learned_start,
    of_cell,
    problem,
    problem_of,
    relative_error,
    stream,
)
from tests.strange import strange

STEPS = 8
STACKS = {
    "three": (cells.lstm(INPUTS, 2), cells.gru(2, 4), cells.vanilla_rnn(4, 3, leak=0.6)),
    "lstms": (cells.lstm(INPUTS, 3), cells.lstm(3, 2)),
    "columns": (cells.columnar_lstm(INPUTS, 3), cells.columnar_lstm(3, 2)),
}


@functools.cache
def stack(name):
    return problem_of(of_cell(cells.stack(*STACKS[name])), STEPS)


def run(estimator, given, window=1):
    go = lambda *args: gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(go)(*given.args)


@functools.cache
def by_layers(name, cut=lambda hidden: hidden):
    """Σ_l Σ_t credit_l(t) · dh_l(t)/dθ by reverse mode, each layer on recorded outputs of the one below.

    credit_l(t) is the gradient of the loss in h_l(t), through the layers above at their recorded h(t-1).
    `cut` may stop gradients in the hidden state that a layer starts a step with.
    """
    stacked = STACKS[name]
    model, _, hidden, xs, ys, _ = stack(name)

    def total(params):
        follow = lambda h, x: (model.transition(params, h, x),) * 2
        _, after = jax.lax.stop_gradient(jax.lax.scan(follow, hidden, xs))
        before = jax.tree.map(lambda h, rest: jnp.concatenate([h[None], rest[:-1]]), hidden, after)
        loss = jnp.mean(jax.vmap(lambda h, y: model.loss(params, h, y)[0])(after, ys))
        below = xs
        for layer, cell in enumerate(stacked):

            def above(own, before, y, layer=layer):
                hidden = [*before[:layer], own]
                for upper in range(layer + 1, len(stacked)):
                    x = stacked[upper - 1].output(hidden[-1])
                    hidden.append(stacked[upper].step(params["cell"][upper], before[upper], x))
                return model.loss(params, tuple(hidden), y)[0]

            def follow(h, x, layer=layer, cell=cell):
                return (cell.step(params["cell"][layer], cut(h), x),) * 2

            credit = jax.lax.stop_gradient(jax.vmap(jax.grad(above))(after[layer], before, ys))
            _, own = jax.lax.scan(follow, hidden[layer], below)
            loss += sum(jax.tree.leaves(jax.tree.map(jnp.vdot, credit, own))) / STEPS
            below = jax.vmap(cell.output)(after[layer])
        return loss

    return jax.jit(jax.grad(total))(stack(name).params)


def test_one_layer_is_exact():
    given = problem("lstm", STEPS)
    assert relative_error(run(ostl(given.model), given, 4), given.exact) <= 1e-10


@pytest.mark.parametrize(("name", "window"), [("lstms", 1), ("three", 4)])
def test_a_stack_keeps_time_inside_layers(name, window):
    given, expected = stack(name), by_layers(name)
    assert relative_error(run(ostl(given.model), given, window), expected) <= 1e-10
    assert relative_error(expected, given.exact) > 1e-2
    # the top layer's past is all its own
    top = lambda grads: (grads["cell"][-1], grads["readout"])
    assert relative_error(top(expected), top(given.exact)) <= 1e-10


def test_eprop_within_a_stack_of_lstms_holds_each_recurrence():
    given = stack("lstms")
    with pytest.raises(ValueError, match="eprop is local"):
        eprop(given.model)
    got = run(ostl(given.model, within="eprop"), given)
    held = by_layers("lstms", cut=lambda hidden: hidden._replace(h=jax.lax.stop_gradient(hidden.h)))
    assert relative_error(got, held) <= 1e-10
    assert relative_error(got, by_layers("lstms")) > 1e-2


def test_columns_in_a_stack_need_order_one():
    given = stack("columns")
    sparse = ostl(given.model, within=snap)
    assert relative_error(run(sparse, given), by_layers("columns")) <= 1e-10
    dense = stack("lstms")
    assert relative_error(run(ostl(dense.model, within=snap), dense), by_layers("lstms")) > 1e-3
    # not so without layers: the lower one's weights reach all of the upper one
    whole = functools.partial(memory, params=given.params, hidden=given.hidden)
    assert whole(sparse) < 0.7 * whole(snap(given.model))


@pytest.mark.parametrize("within", [uoro, kernl, "rflo", functools.partial(snap, order=2)])
def test_other_estimators_serve_a_stack(within):
    model = of_cell(cells.stack(cells.vanilla_rnn(INPUTS, 4), cells.vanilla_rnn(4, 3)))
    params, hidden = jax.eval_shape(model.init, jax.random.key(0))
    estimator = ostl(model, within=within)
    state = jax.eval_shape(lambda *start: estimator.init(*start, key=jax.random.key(0)), params, hidden)
    after, estimate = jax.eval_shape(estimator.update, state, params, *stream(model, 2))
    chex.assert_trees_all_equal_shapes_and_dtypes((after, estimate.grads), (state, params))
    if within != uoro and within != kernl:
        assert sorted(estimate.info) == ["kept[0]", "kept[1]"]


def test_a_weight_of_two_layers_gets_the_sum():
    cell = cells.vanilla_rnn(INPUTS, INPUTS, leak=0.6)
    apart = of_cell(cells.stack(cell, cell))
    both = lambda params: params | {"cell": (params["cell"], params["cell"])}

    def init(key):
        params, hidden = apart.init(key)
        return params | {"cell": params["cell"][0]}, hidden

    transition = lambda params, h, x: apart.transition(both(params), h, x)
    tied = problem_of(apart._replace(init=init, transition=transition), STEPS)
    got = run(ostl(tied.model), tied)["cell"]
    lower, upper = run(ostl(apart), tied._replace(params=both(tied.params)))["cell"]
    assert relative_error(got, jax.tree.map(jnp.add, lower, upper)) <= 1e-10
    assert relative_error(got, upper) > 1e-2


def test_an_output_without_memory_carries_nothing_and_costs_no_exactness():
    """A complex linear recurrence below its output: two layers, of which one has a past."""

    def init(key):
        keys = jax.random.split(key, 3)
        params = {
            "nu": jnp.linspace(-1, 0.5, HIDDEN),
            "B": jax.random.normal(keys[0], (HIDDEN, INPUTS)),
            "C": jax.random.normal(keys[1], (2, OUTPUTS, HIDDEN)),
        }
        return params, {"h": jnp.zeros(HIDDEN, complex), "y": jnp.zeros(OUTPUTS)}

    def transition(params, hidden, x):
        turn = jnp.exp(jax.lax.complex(-jnp.exp(params["nu"]), 2 * params["nu"]))
        h = turn * hidden["h"] + (params["B"] @ x).astype(complex)
        return {"h": h, "y": jnp.tanh(params["C"][0] @ jnp.real(h) - params["C"][1] @ jnp.imag(h))}

    given = problem_of(
        Model(init, transition, lambda params, h, y: (losses.squared_error(h["y"], y), ()), EXAMPLE)
    )
    estimator = ostl(given.model)
    for window in (1, 5):
        assert relative_error(run(estimator, given, window), given.exact) <= 1e-10
    state = jax.eval_shape(lambda: estimator.init(given.params, given.hidden, key=jax.random.key(0)))
    assert [hasattr(layer, "influence") for layer in state.layers] == [True, False]


def test_keys_and_counters_go_with_the_stream():
    given = problem_of(strange("random dropout"), STEPS)
    assert relative_error(run(ostl(given.model), given, 4), given.exact) <= 1e-10


def test_a_reset_forgets_in_every_layer():
    """Two episodes of one segment are two streams, and a learned initial state gets its gradient."""
    given = problem_of(learned_start(of_cell(cells.stack(cells.vanilla_rnn(INPUTS, 4), cells.lstm(4, 2)))), 6)
    estimator = ostl(given.model)
    update = jax.jit(estimator.update)
    start = functools.partial(estimator.init, given.params, key=jax.random.key(0))
    resets = jnp.arange(6) == 3
    part = lambda at, resets=resets: ((given.xs[0][at], resets[at]), given.ys[at])
    end, joint = update(start(given.hidden), given.params, *part(slice(6)))
    middle, before = update(start(given.hidden), given.params, *part(slice(3)))
    fresh, after = update(start(given.hidden), given.params, *part(slice(3, 6)))
    mean = jax.tree.map(lambda one, other: (one + other) / 2, before.grads, after.grads)
    chex.assert_trees_all_close(joint.grads, mean, rtol=1e-10, atol=1e-10)
    chex.assert_trees_all_close(end.layers[1].influence, fresh.layers[1].influence, rtol=1e-10)
    assert all(jnp.all(leaf != 0) for leaf in jax.tree.leaves(joint.grads["start"][0]))
    on = part(slice(3, 6), resets=jnp.zeros(6, bool))
    calm, _ = update(middle, given.params, *on)
    assert not jnp.allclose(calm.layers[1].influence[0], fresh.layers[1].influence[0])
    forgotten = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), [e.influence for e in middle.layers])
    sick = [e._replace(influence=m) for e, m in zip(middle.layers, forgotten, strict=True)]
    healed, _ = update(middle._replace(layers=tuple(sick)), given.params, *part(slice(3, 6)))
    chex.assert_trees_all_close(healed.layers[1].influence, fresh.layers[1].influence, rtol=1e-10)
    # a layer's own copy of its state is replaced by the stream's
    astray = [e._replace(hidden=jax.tree.map(lambda leaf: leaf + 1, e.hidden)) for e in middle.layers]
    back, _ = update(middle._replace(layers=tuple(astray)), given.params, *on)
    chex.assert_trees_all_close(back.layers[1].influence, calm.layers[1].influence, rtol=1e-10)
    lower, upper = hidden_of(back)
    assert jnp.allclose(back.layers[0].hidden[0], lower, rtol=1e-12)
    chex.assert_trees_all_close(back.layers[1].hidden, list(upper), rtol=1e-12)


def late(params, hidden, x):
    """The upper layer reads the lower one's state of the step before."""
    lower, upper = hidden
    return jnp.tanh(params["V"] @ lower + x), jnp.tanh(params["W"] @ upper + lower)


def bypassed(params, hidden, x):
    """The upper layer reads what the lower leaf is made from."""
    lower, upper = hidden
    moved = jnp.tanh(params["V"] @ lower + x)
    return 1.0 * moved, jnp.tanh(params["W"] @ upper + moved)


@pytest.mark.parametrize("transition", [late, bypassed])
def test_what_no_credit_reaches_within_a_step_is_refused(transition):
    start = {"V": jnp.eye(INPUTS), "W": jnp.eye(INPUTS)}, (jnp.zeros(INPUTS), jnp.zeros(INPUTS))
    loss = lambda params, hidden, y: (jnp.sum(hidden[1]), ())
    model = Model(lambda key: start, transition, loss, EXAMPLE)
    with pytest.raises(ValueError, match=r"lose the credit of params\['V'\]: it moves hidden\[0\]"):
        ostl(model)
    # no loss at any time reads it: zero is the truth
    other = Model(lambda key: start, transition, lambda *args: (jnp.sum(args[1][0]), ()), EXAMPLE)
    given = problem_of(other, 4)
    got = run(ostl(other), given)
    assert relative_error(got, given.exact) <= 1e-10
    assert not jnp.any(got["W"])


def line(params, hidden, x):
    """A delay line of the state."""
    h = jnp.tanh(params["A"] @ hidden["h"] + params["B"] @ x)
    return {"h": h, "line": jnp.concatenate([h[None], hidden["line"][:-1]])}


def half(params, hidden, x):
    """One entry of the lower leaf is read within the step, the other one only later."""
    lower = jnp.stack(
        [jnp.sum(params[name] @ x) + 0.5 * h for name, h in zip("AB", hidden["h"], strict=True)]
    )
    return {"h": jnp.tanh(lower), "late": 0.7 * hidden["late"] + hidden["h"][1]}


@pytest.mark.parametrize(
    ("transition", "start", "reads", "refused"),
    [
        (line, {"h": jnp.zeros(INPUTS), "line": jnp.zeros((3, INPUTS))}, lambda h: h["line"][-1], "A"),
        (line, {"h": jnp.zeros(INPUTS), "line": jnp.zeros((3, INPUTS))}, lambda h: h["line"][0], None),
        (half, {"h": jnp.zeros(2), "late": jnp.zeros(())}, lambda h: h["h"][0] + h["late"], "B"),
        (half, {"h": jnp.zeros(2), "late": jnp.zeros(())}, lambda h: h["h"], None),
    ],
)
def test_credit_is_of_entries(transition, start, reads, refused):
    params = {"A": 0.3 * jnp.eye(INPUTS), "B": jnp.eye(INPUTS)}
    loss = lambda params, hidden, y: (jnp.sum(reads(hidden)), ())
    model = Model(lambda key: (params, start), transition, loss, EXAMPLE)
    if refused:
        with pytest.raises(
            ValueError, match=rf"lose the credit of params\['{refused}'\]: it moves hidden\['h'\]"
        ):
            ostl(model)
    else:
        given = problem_of(model, 4)
        assert relative_error(run(ostl(model), given), given.exact) <= 1e-10


@pytest.mark.parametrize("stored", [lambda h: h.astype(jnp.float32)[None], lambda h: 1.0 * h])
def test_what_a_leaf_is_made_from_is_the_leaf_or_refused(stored):
    """The upper layer, without a past, and the loss read a lower leaf before it is stored."""

    def transition(params, hidden, x):
        h = jnp.tanh(params["V"] @ hidden[0].astype(float).reshape(-1) + x)
        return stored(h), jnp.tanh(params["W"] @ h)

    start = stored(jnp.zeros(INPUTS)), jnp.zeros(INPUTS)
    loss = lambda params, hidden, y: (jnp.sum(hidden[0].astype(float)) + jnp.sum(hidden[1]), ())
    params = {"V": jnp.eye(INPUTS) / 2, "W": jnp.eye(INPUTS)}
    model = Model(lambda key: (params, start), transition, loss, EXAMPLE)
    if start[0].ndim == 1:
        with pytest.raises(ValueError, match=r"lose the credit of params\['V'\]: it moves hidden\[0\], and"):
            ostl(model)
    else:
        given = problem_of(model, 4)
        assert relative_error(run(ostl(model), given), given.exact) <= 1e-5


def test_bad_arguments():
    model = stack("lstms").model
    for within, error, match in [
        ("rtlr", ValueError, "unknown estimator 'rtlr'; did you mean 'rtrl'"),
        (3, TypeError, "within must be a constructor such as rtrl, or a name, got 3"),
        (rtrl(model), TypeError, "or a name, got an Estimator$"),
        (lambda model: rtrl(model), TypeError, r"within\(model, allow_unused=True\): got an unexpected"),
        (lambda model, **options: model, TypeError, "online_grads.Estimator, got Model"),
        (fbptt, ValueError, "within must give its gradients at once"),
        ("rflo", ValueError, r"rflo keeps one trace per weight.*params\['cell'\]\[0\]"),
    ]:
        with pytest.raises(error, match=match):
            ostl(model, within=within)
    unused = model._replace(init=lambda key: (lambda p, h: ({**p, "idle": jnp.ones(2)}, h))(*model.init(key)))
    with pytest.raises(ValueError, match=r"uses params\['idle'\]"):
        ostl(unused)
    ostl(unused, allow_unused=True)


def test_a_config_may_name_what_serves_a_layer():
    within = options(ostl)["within"]
    assert fits("eprop", within.annotation)
    assert expected(within.annotation) == "a string"
