"""Weak scaling of RTRL over simulated devices, from the compiled program and not from wall time:

    python -m tests.benchmarks.weak_scaling

A tanh network with 64 units learns at every step. Its inputs grow with the number of devices, so that every
device has the same number of parameters. Printed per device, for one step: the bytes of its share of the
influence; the flops of the whole program, and their ratio to its share of J·M, 2 n² p / D; the bytes that
collectives give it, split into the gradient, which every device gets whole (p entries), and the rest (J, the
factors of ∂h/∂w, vectors).
"""

import jax

from online_grads import rtrl
from online_grads.sharding import sharded
from tests.distributed import collectives, stream, tanh_model

HIDDEN, COLUMNS = 64, 128  # COLUMNS per device: of [h; x; 1], what the weights meet


def costs(devices: int) -> dict:
    """What one step costs each of so many devices."""
    inputs = COLUMNS * devices - HIDDEN - 1
    model = tanh_model(HIDDEN, inputs)
    mesh = jax.make_mesh((devices,), ("params",), devices=jax.devices()[:devices])
    estimator = sharded(rtrl(model), mesh)
    params, hidden = model.init(jax.random.key(0))
    state = estimator.init(params, hidden, key=jax.random.key(1))
    compiled = jax.jit(estimator.update).lower(state, params, *stream(1, inputs)).compile()
    parameters = HIDDEN * COLUMNS * devices
    exchanged = sum(each.bytes for each in collectives(compiled.as_text()))
    gradient = 4 * parameters if devices > 1 else 0
    flops = compiled.cost_analysis()["flops"]
    return {
        "devices": devices,
        "p": parameters,
        "influence": sum(leaf.addressable_shards[0].data.nbytes for leaf in state.influence),
        "flops": int(flops),
        "/ J·M": f"{flops / (2 * HIDDEN**2 * parameters / devices):.3f}",
        "exchanged": exchanged,
        "gradient": gradient,
        "rest": exchanged - gradient,
    }


def main():
    """Print the table."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    rows = [costs(devices) for devices in (1, 2, 4, 8)]
    print(f"RTRL, tanh, n = {HIDDEN}, k = 1, float32, JAX {jax.__version__}; per device and step")
    for row in [{name: name for name in rows[0]}, *rows]:
        print("".join(f"{value:>12}" for value in row.values()))


if __name__ == "__main__":
    main()
