"""The decision core: what should happen to a run, given all that was observed and the time. Pure: no I/O, no clock."""
