"""The commands of `python -m diffusion`. What they refuse is a `UserError` of one line, which `app.command` prints."""
