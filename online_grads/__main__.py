"""`python -m online_grads` is `online-grads`."""

import sys

from online_grads.cli import main

if __name__ == "__main__":
    sys.exit(main())
