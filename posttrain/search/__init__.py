"""Looks for right answers step by step: what to sample next (pure), and how it is sampled, checked and scored."""
