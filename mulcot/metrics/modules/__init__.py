"""The text metrics as modules of Hugging Face's `evaluate`: `evaluate.load` takes the folder of one by its path."""
