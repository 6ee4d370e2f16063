"""Runs that began with an older trainer: none of them is ended by a rule that came later.

scripts.py    scripts that people have, each with what a resume has to show
record.py     records the first attempts of all scripts, with the trainer that is on PYTHONPATH
ba64ce2.tar.xz
              checkpoints of 1 and of 2 ranks in the middle of a training, and the losses with which the trainer of that
              commit went on from them
"""
