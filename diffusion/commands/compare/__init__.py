"""`compare`: one page of what was measured."""
