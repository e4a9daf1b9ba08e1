"""The parts of ``benchmarks/code.py``."""
