"""The features of a language model, each from its own best start."""
