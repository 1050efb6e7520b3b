"""`export`: a model in the layout of another project, or of the Hugging Face hub."""
