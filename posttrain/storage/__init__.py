"""Files on disk: artifacts, shards of unfinished work, locks, logs. Nothing here knows of post-training."""
