"""Has stages run: scheduler, launchers, retries, resources, cache-aware runner. It knows nothing of the loop."""
