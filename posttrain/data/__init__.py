"""Rows in: where prompt and preference sets lie, their formats, chat templates, pairs, selections and tables."""
