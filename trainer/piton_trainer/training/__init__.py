"""The training loop of one attempt.

session          `piton_trainer.session()`: joins the run, restores, trains, and ends
steps            the iterator that a loop walks; the boundary after each step
boundary         the vote of the ranks at a boundary, and what follows from it (pure)
stop_requests    signals, the operator's requests and the run's limits
save_scheduler   starts saves when they are due, and follows each until it is durable
run_checkpoint   saves of a run: objects, position, metrics; run_restore is the way back
loop             the loop that all recipes share
"""
