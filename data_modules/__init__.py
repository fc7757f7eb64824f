"""The shared data module (`data_modules.multimodal`), and readers that need no torch (`data_modules.readers`)."""
