"""Sessions for training loops that are somebody else's. Neither framework is imported unless its module is.

transformers   `PitonCallback` for transformers.Trainer
lightning      `PitonCallback` for lightning.Trainer
"""
