"""`quality`: samples against images."""
