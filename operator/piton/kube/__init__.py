"""The cluster world: a run becomes PyTorchJobs on Kubernetes.

Watches only wake the operator; what it does is decided by the core, on live reads.
"""
