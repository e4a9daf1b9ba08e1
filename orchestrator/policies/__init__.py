"""Policies: they look at data, return a decision, and touch nothing."""
