"""Piton's own PyTorchJob controller, the pure half: a job and what is there of it in, what has to change out.

It serves the jobs that Piton creates on clusters without Kubeflow's training operator, and does what v1.9 of that does:
the same names, labels, environment, services and conditions. docs/pytorchjob-conformance.md has every rule, and says
where it differs and why. Nothing in here knows a TrainingRun, reads a clock or talks to a cluster; that is in
`piton.kube.job_controller`.
"""
