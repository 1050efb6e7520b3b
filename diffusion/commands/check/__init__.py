"""`check`: does a model answer what it is taken to answer?"""
