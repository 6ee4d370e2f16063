"""The training loop of one attempt.

session          `piton_trainer.session()`: joins the run, restores, trains, and ends
steps            the iterator that a loop walks; the boundary after each step
boundary         what the ranks agree on at a boundary, and what follows from it (pure)
save_scheduler   starts saves when they are due, and follows each until it is durable
run_checkpoint   what a checkpoint of a run consists of: objects, position, metrics
loop             the loop that all recipes share
"""
