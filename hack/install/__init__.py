"""Puts Piton into a cluster as its users do: the chart, with helm.

    python -m hack.install            into the cluster that KUBECONFIG names; else into the box, which is brought up
    python -m hack.install --remove   take it out again; the CRDs and the runs stay

Into the box it also brings the images, built from this checkout.
"""
