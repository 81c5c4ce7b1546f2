"""The same work by this library, by the peer library `braintrace`, and by plain `jax.grad`, side by side:

    python -m tests.benchmarks.peers [N ...]

N are numbers of units, 64 and 256 by default. One stream in float32, 8 inputs, a linear readout to 4
outputs, half the squared error. Per step: forwards, the trace or influence, the loss, the gradient and
`p - 1e-4 * g`, all in one jitted scan. The last pair updates once per stream instead.

    µs         per step, the best of several calls, the two sides in turn
    peer/ours  how often ours fits into the peer's time
    compile    seconds from the model to the end of the second call, without the two runs: the peer
               compiles again in its second call
    leaves out the peer's parameters that get no gradient through time: `zero` none at all after a few
               steps, `no trace` that of the present step only

The peer runs with its own layers and each algorithm's default options, a gradient by
`brainstate.transform.grad` in every turn of its `for_loop`, as its documentation has it. The cells:

    tanh       the same model on both sides
    gru        each library's own: ours resets after the recurrent product, the peer's before
    gru after  ours in the peer's layers: the same model on both sides
    lru        8 inputs and outputs: the same model, but for our D, a matrix where the peer's is a diagonal

The algorithms are not all the same. Without its filter, the peer's EProp is its D_RTRL, of which e-prop
is our name; its SnAp with n = 1 is its OSTLRecurrent; with n = 2 it keeps all of a dense cell's
influence, as RTRL does. Its DNI is D_RTRL, with a synthesiser for parameters without trace only; it is
fitted here in the same turn of the loop, as ours is. `UORO` and `DNI` add the step's own gradient to
what the trace says, the others read everything from the trace.
"""

import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads import cells, dni, eprop, from_cell, losses, readouts, rtrl, snap, tbptt, uoro

try:
    import brainstate
    import braintrace
except ImportError:  # the tests read every file, and need no peer
    brainstate = braintrace = None

INPUTS, OUTPUTS, RATE, SYNTHESISER_RATE, REPEATS = 8, 4, 1e-4, 1e-3, 5
OUR_CELLS = {
    "tanh": cells.vanilla_rnn,
    "gru": cells.gru,
    "gru after": cells.gru,
    "lru": lambda inputs, n: cells.lru(inputs, n, outputs=inputs),
}


def network(cell, n):
    """A cell and a linear readout of the peer's."""
    linear = braintrace.nn.Linear

    class GruAfter(brainstate.nn.RNNCell):
        """The cell of `cells.gru` in the peer's layers."""

        def __init__(self, inputs, n):
            super().__init__()
            self.n = n
            self.Wr, self.Wz = linear(inputs + n, n), linear(inputs + n, n)
            self.W_in, self.W_hn = linear(inputs, n), linear(n, n)

        def init_state(self, batch_size=None, **_):
            self.h = brainstate.HiddenState(jnp.zeros(self.n))

        def update(self, x):
            h = self.h.value
            both = jnp.concatenate([x, h])
            r, z = jax.nn.sigmoid(self.Wr(both)), jax.nn.sigmoid(self.Wz(both))
            new = jnp.tanh(self.W_in(x) + r * self.W_hn(h))
            self.h.value = (1 - z) * new + z * h
            return self.h.value

    class Network(brainstate.nn.Module):
        def __init__(self, make):
            super().__init__()
            self.cell, self.readout = make(INPUTS, n), linear(INPUTS if cell == "lru" else n, OUTPUTS)

        def update(self, x):
            return self.readout(self.cell(x))

    tanh = partial(braintrace.nn.ValinaRNNCell, activation="tanh")
    makers = {"tanh": tanh, "gru": braintrace.nn.GRUCell, "gru after": GruAfter, "lru": braintrace.nn.LRUCell}
    return Network(makers[cell])


class Side(NamedTuple):
    """What is measured of one library."""

    call: Callable  # () -> arrays: one stream
    left_out: Callable = lambda: "nothing"  # () -> what it leaves out


def stream(steps):
    keys = jax.random.split(jax.random.key(3))
    return jax.random.normal(keys[0], (steps, INPUTS)), jax.random.normal(keys[1], (steps, OUTPUTS))


def descent(params, grads, rate=RATE):
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def model_of(cell, n):
    cell = OUR_CELLS[cell](INPUTS, n)
    readout = readouts.linear(cell.size, OUTPUTS)
    return from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(INPUTS), jnp.zeros(OUTPUTS)))


def ours(make, cell, n, steps, *, whole=False):
    """One of our estimators, with a segment per step or one for the whole stream."""
    model = model_of(cell, n)
    estimator = make(model)
    params, hidden = model.init(jax.random.key(0))
    state = estimator.init(params, hidden, key=jax.random.key(1))
    segments = 1 if whole else steps
    xs, ys = (leaf.reshape(segments, steps // segments, -1) for leaf in stream(steps))

    @jax.jit
    def go(params, state, xs, ys):
        def body(carry, xy):
            params, state = carry
            state, estimate = estimator.update(state, params, *xy)
            return (descent(params, estimate.grads), state), estimate.loss

        return jax.lax.scan(body, (params, state), (xs, ys))

    return Side(lambda: go(params, state, xs, ys))


def tanh_step(p, h, x):
    return jnp.tanh(p["W_rec"] @ h + p["W_in"] @ x + p["bias"])


def gru_step(p, h, x):
    r, z = jnp.split(jax.nn.sigmoid(p["W_rz"] @ jnp.concatenate([h, x]) + p["bias_rz"]), 2)
    new = jnp.tanh(p["W_in"] @ x + p["bias_in"] + r * (p["W_hn"] @ h + p["bias_hn"]))
    return (1 - z) * new + z * h


def plain(cell, n, steps):
    """`jax.grad` of the mean loss of the whole stream, through `lax.scan` of a cell written by hand."""
    params, hidden = model_of(cell, n).init(jax.random.key(0))
    xs, ys = stream(steps)
    step = tanh_step if cell == "tanh" else gru_step

    def mean_loss(params, hidden, xs, ys):
        def body(h, xy):
            h = step(params["cell"], h, xy[0])
            prediction = params["readout"]["W"] @ h + params["readout"]["bias"]
            return h, jnp.sum((prediction - xy[1]) ** 2) / 2

        hidden, each = jax.lax.scan(body, hidden, (xs, ys))
        return each.mean(), hidden

    @jax.jit
    def go(params, hidden, xs, ys):
        (loss, hidden), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, hidden, xs, ys)
        return descent(params, grads), hidden, loss

    return Side(lambda: go(params, hidden, xs, ys))


def peer(algorithm, options, cell, n, steps):
    """One of the peer's algorithms."""
    xs, ys = stream(steps)
    learner = braintrace.compile(network(cell, n), algorithm, xs[0], seed=0, **options)
    params, hidden = learner.param_states, learner.hidden_states
    with_fit = algorithm is braintrace.DNI
    fit = fitting(learner) if with_fit else None

    def loss(x, y):
        return jnp.sum((learner(x) - y) ** 2) / 2

    gradient = brainstate.transform.grad(
        loss, {**params, **hidden} if with_fit else params, return_value=True
    )

    def step(x, y):
        before = {path: state.value for path, state in hidden.items()}
        grads, value = gradient(x, y)
        if with_fit:
            fit(before, grads)
        for path, state in params.items():
            state.value = descent(state.value, grads[path])
        return value

    go = brainstate.transform.jit(lambda xs, ys: brainstate.transform.for_loop(step, xs, ys))
    return Side(lambda: go(xs, ys), lambda: left_out(learner, gradient))


def fitting(learner):
    """The synthesiser's own step, towards the credit that the gradient found at the state before."""
    synthesiser = braintrace.SyntheticGradient(learner.group_signal_shapes())
    learner.attach_synthesizer(synthesiser)
    states = synthesiser.states_dict()
    grouped = lambda tree: {
        group.index: group.concat_hidden([tree[path] for path in group.hidden_paths])
        for group in learner.graph.hidden_groups
    }

    def fit(before, grads):
        features, target = grouped(before), grouped(grads)

        def error():
            predicted = synthesiser.apply(synthesiser.param_values(), features)
            return sum(jnp.sum((predicted[index] - target[index]) ** 2) / 2 for index in target)

        slopes = brainstate.transform.grad(error, states)()
        for path, state in states.items():
            state.value = descent(state.value, slopes[path], SYNTHESISER_RATE)

    return fit


def left_out(learner, gradient):
    """The parameters that get no gradient at all, or only the present step's, after a few steps."""
    grads = gradients(learner, gradient)
    untraced = [path for path, _ in learner.report.excluded_weights if path[0] == "cell"]
    all_params = learner.graph_executor.model.states(brainstate.ParamState)
    found = [f"{'.'.join(path)} missing" for path in all_params if path not in grads]
    for path in learner.param_states:
        whole = not isinstance(grads[path], dict)  # a parameter of the cell's own, in no layer
        for name, leaf in [("", grads[path])] if whole else grads[path].items():
            fate = "no trace" if path in untraced else ""
            fate = fate if jnp.any(leaf) else "zero"
            layer = path[1] if len(path) > 2 else path[0]
            found += [f"{path[-1] if whole else f'{layer}.{name}'} {fate}"] if fate else []
    if isinstance(learner, braintrace.DNI):
        found.append(f"synthetic credit reaches {credited(learner, gradient)}")
    return ", ".join(found) or "nothing"


def gradients(learner, gradient):
    """The peer's gradients at the last of a few steps, its states left as they were."""
    states = learner.states()
    start = {path: state.value for path, state in states.items()}
    run = brainstate.transform.jit(lambda xs, ys: brainstate.transform.for_loop(gradient, xs, ys)[0])
    grads = jax.tree.map(lambda leaf: leaf[-1], dict(run(*stream(6))))
    for path, state in states.items():
        state.value = start[path]
    return grads


def credited(learner, gradient):
    """The peer's parameters whose gradient a different synthesiser changes."""
    found = []
    for state in learner.synthesizer.states_dict().values():
        state.value = jnp.zeros_like(state.value)
    without = gradients(learner, gradient)
    for state in learner.synthesizer.states_dict().values():
        state.value = jnp.ones_like(state.value)
    for path, grads in gradients(learner, gradient).items():
        same = jax.tree.map(jnp.array_equal, grads, without[path])
        found += [] if path not in learner.param_states or jax.tree.all(same) else [path[-2]]
    return ", ".join(found) or "none"


def pairs(cell):
    """(ours, its builder, the peer's, its builder, whether the influence is dense)."""
    of_peer = lambda name, **options: partial(peer, getattr(braintrace, name), options)
    if cell == "lru":
        return [("rtrl, k = 1", partial(ours, rtrl), "D_RTRL", of_peer("D_RTRL"), False)]
    return [
        ("snap, order 1", partial(ours, snap), "SnAp, n = 1", of_peer("SnAp", n=1), False),
        ("snap, order 1", partial(ours, snap), "OSTLRecurrent", of_peer("OSTLRecurrent"), False),
        ("snap, order 1", partial(ours, snap), "D_RTRL", of_peer("D_RTRL"), False),
        ("eprop", partial(ours, eprop), "EProp", of_peer("EProp"), False),
        ("uoro, k = 1", partial(ours, uoro), "UORO", of_peer("UORO"), False),
        ("dni", partial(ours, dni), "DNI", of_peer("DNI"), False),
        ("rtrl, k = 1", partial(ours, rtrl), "SnAp, n = 2", of_peer("SnAp", n=2), True),
        ("tbptt, k = T", partial(ours, tbptt, whole=True), "jax.grad", plain, False),
    ]


def warmed(build):
    """A side after two calls and the seconds that took, or the error."""
    begin = time.perf_counter()
    try:
        side = build()
        for _ in range(2):
            jax.block_until_ready(side.call())
    except Exception as error:
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return side, time.perf_counter() - begin


def measured(builders):
    """Of each side (itself, seconds of the best call, seconds of compilation), or (None, the error, None)."""
    sides = [warmed(build) for build in builders]
    times = [[], []]
    for _ in range(REPEATS):
        for (side, _), into in zip(sides, times, strict=True):
            if side is not None:
                begin = time.perf_counter()
                jax.block_until_ready(side.call())
                into.append(time.perf_counter() - begin)
    return [
        (side, min(into), took - 2 * min(into)) if side is not None else (None, took, None)
        for (side, took), into in zip(sides, times, strict=True)
    ]


def row(cell, n, ours_name, ours_build, peer_name, peer_build, dense):
    """One line of the table."""
    steps = min(5000, max(4, 5 * 10**8 // n**4 if dense else 2 * 10**7 // n**2))
    (our, our_best, our_compile), (their, best, compiled) = measured(
        [partial(build, cell, n, steps) for build in (ours_build, peer_build)]
    )
    errors = [f"error: {text}" for side, text in ((our, our_best), (their, best)) if side is None]
    us = lambda side, seconds: f"{1e6 * seconds / steps:.1f}" if side is not None else "-"
    ratio = "-" if errors else f"{best / our_best:.2f}"
    compiles = [f"{c:.1f}" if c is not None else "-" for c in (our_compile, compiled)]
    last = "; ".join(errors) if errors else their.left_out()
    return cell, n, ours_name, peer_name, us(our, our_best), us(their, best), ratio, "/".join(compiles), last


def main(sizes):
    """Measure and print."""
    if braintrace is None:
        raise SystemExit("braintrace is missing: pip install -e '.[bench]'")
    warnings.filterwarnings("ignore")
    versions = f"JAX {jax.__version__}, braintrace {braintrace.__version__}"
    print(f"{versions}, brainstate {brainstate.__version__}, {jax.devices()[0].platform}")
    line = "{:10} {:>4}  {:14} {:14} {:>10} {:>10} {:>9} {:>11}  {}"
    print(
        line.format("cell", "n", "ours", "peer", "µs ours", "µs peer", "peer/ours", "compile s", "leaves out")
    )
    for n in sizes:
        for cell in OUR_CELLS:
            for build in (partial(ours, tbptt), partial(peer, braintrace.D_RTRL, {})):
                warmed(partial(build, cell, n, 4))  # the first initialisation of a shape compiles too
            for pair in pairs(cell):
                print(line.format(*row(cell, n, *pair)), flush=True)


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]] or [64, 256])
