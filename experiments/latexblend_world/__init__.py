"""What a perfect model would score on the suite of the world."""
