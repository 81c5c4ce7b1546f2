"""`python -m online_grads` is `online-grads`."""

from online_grads.cli import entry

if __name__ == "__main__":
    entry()
