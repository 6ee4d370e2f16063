"""The TrainingRun resource: its spec, its status, and the rules on both. Pure functions."""
