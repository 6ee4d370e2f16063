"""A real Kubernetes in a box: etcd, the control plane, and nodes that run real containers, on one bare Linux machine.

There is no Docker engine, no kind and no image registry on such a machine, and a mock API server is not proof. So
this package builds Kubernetes from its published Go modules and runs it as plain processes. It knows nothing of Piton:
what it brings up is a cluster that looks like one with spot p4d nodes, and the ways in which such nodes go away.

    python -m hack.cluster up | down | status | kubeconfig | load IMAGE | prometheus
    python -m hack.cluster node add | reclaim | kill | cut | heal NODE

One box per machine: its addresses and its folder are fixed.
"""
