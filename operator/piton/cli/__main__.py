"""`python -m piton.cli`, where the console script is not on PATH."""

from piton.cli import main

main()
