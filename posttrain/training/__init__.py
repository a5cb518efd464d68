"""What the trained stages share: TRL's trainers and their configuration, data as token ids, checkpoints."""
