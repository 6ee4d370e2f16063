"""Finding a training that hangs, and ending it with the stacks of its ranks.

    heartbeats each rank writes its step and its phase into shared memory
    detection  whether the job hangs, from what the ranks of this node have written; pure
    peers      what the watchdogs of a job's other nodes say, through the checkpoint volume
    collect    the stacks of the ranks, and the state of their processes
    watchdog   the process that looks, one per node

It is a process of its own: a rank that holds the GIL, waits in a collective or is stopped cannot look at itself.
"""
