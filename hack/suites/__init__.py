"""The two suites of all tests: the presubmit that CI runs, and the nightly one.

    python -m hack.suites presubmit               what `.ci/run` runs
    python -m hack.suites nightly --part cluster  one part of the other, with what it needs

A suite is a list of parts. Each part is a command that people run by hand as well. Parts run side by side, as far as
their order allows. A part that fails stops only the parts that need it. This package runs before `make setup`, so it
imports the standard library only.
"""
