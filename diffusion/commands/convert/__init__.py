"""`convert`: any model that is taken as one file of this package."""
