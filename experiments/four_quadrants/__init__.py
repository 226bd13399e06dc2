"""Word order through the features of a language model."""
