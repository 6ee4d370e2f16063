"""The sweep: one template, many runs, one table. The pure half, for the cluster and for this machine.

It knows the core of a run, and no world: no I/O, no clock, no Kubernetes. A run does not know that it is a sweep's.
"""
