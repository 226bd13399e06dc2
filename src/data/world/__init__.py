"""The world: a procedural family of scenes whose ground truth is exact."""
