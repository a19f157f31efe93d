"""`python -m cierzo` is the `cierzo` command."""

from cierzo.cli import main

main()
