"""The controllers that Piton meets in real clusters, run as plain processes of this machine against the box.

Each is a program that its authors publish; a module of this package knows what it needs of the cluster, starts it and
stops it. Nothing in here knows Piton.
"""
