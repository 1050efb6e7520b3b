"""`average`: an average of the weights of a run, of a width chosen after training."""
