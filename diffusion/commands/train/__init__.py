"""`train.py` and what else trains."""
