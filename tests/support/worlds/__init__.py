"""Hypothesis' rules for one run and all that it may meet; `tests/core/test_random_worlds.py` plays them."""
