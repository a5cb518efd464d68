"""Data loading: sources and formats of prompt and preference sets, chat templates, pairs, selections and tables."""
