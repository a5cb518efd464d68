"""Runs stages: scheduler, launchers, retries, resources, cache-aware runner. Knows nothing of the loop."""
