"""`compare`: results side by side."""
