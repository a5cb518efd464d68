"""What is on the disk: artifacts, pieces of unfinished work, locks, logs. Nothing here knows of post-training."""
