"""What computes here."""

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str | None]:
    """The versions of this library and of what decides its numbers; None for one run from a checkout.

    >>> sorted(versions())
    ['jax', 'jaxlib', 'online-grads']
    """
    return {name: _version(name) for name in ("online-grads", "jax", "jaxlib")}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
