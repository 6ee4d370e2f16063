"""From a TrainingRun to the objects of Kubernetes that an attempt consists of."""
