"""Studies that are programs of their own."""
