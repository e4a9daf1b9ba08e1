"""The parts of ``benchmarks/transplant.py``."""
