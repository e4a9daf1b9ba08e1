"""The parts of ``benchmarks/tuning.py``."""

LAYERS = ("layer1", "layer2", "layer3")
"""The convolutions that are tuned, by their names in the network."""
