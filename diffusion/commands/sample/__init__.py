"""`sample.py`."""
