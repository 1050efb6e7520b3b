"""What a long training run needs around the loss: averaging, checkpoints, graceful stops, guards and logs.

Nothing here knows what is trained, and each part can be used alone. `ema` takes torch alone; the others are Lightning
callbacks, loggers and plugins for any `LightningModule` whose training draws are functions of the step.
"""
