"""JAX's setting for 64 bits, here and now."""

import jax


def x64(on: bool):
    """The context in which JAX computes in float64, or does not, whatever the caller's setting."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import enable_x64  # type: ignore[attr-defined]

    return enable_x64(on)
