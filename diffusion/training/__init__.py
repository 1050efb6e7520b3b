"""What a long training run needs around the loss: averaging, checkpoints, graceful stops, guards and logs.

Nothing here knows what is trained. The parts are Lightning callbacks, loggers and plugins for any `LightningModule`
whose training draws are functions of the step, and each can be used alone.
"""
