"""Random training loops, killed and resumed: `make fuzz-loops LOOPS=500 SEED=7`.

    loop.py       a loop as data, and the ways to make it simpler (pure)
    changes.py    what a script may have changed when it resumes (pure)
    draw.py       loops by a seed, of the words that fit to each other (pure)
    models.py, optimizers.py, feeds.py, states.py
                  what the words of a loop mean in torch
    script.py     the loop itself, as a user writes it, with a trace of all that it is made of after each step
    drivers.py    the script under Piton, and without it: the oracle, with torch.save and torch.load per rank
    play.py       one loop from the first attempt to the verdict
    shrink.py     the smallest loop that fails as a given one does
    __main__.py   many loops, a table of the verdicts, and the smallest loop that fails as the first one that fails

A resume is exact, or it is refused within its first step, or a line of the log says what is otherwise. Nothing else is.
"""
