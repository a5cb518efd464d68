"""Fakes, planted data and what tests share. No test module imports another."""
