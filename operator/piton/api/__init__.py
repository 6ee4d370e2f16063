"""The resource: what a user may write into a TrainingRun, what Piton answers, and the rules on both. Pure."""
