"""Metrics of answers: statistics with intervals, win rates, diversity, topics. No torch."""
