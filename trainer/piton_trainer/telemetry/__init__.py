"""Reports on a training: to the operator, to Prometheus, to the log."""
