"""Shared by the trained stages: TRL's trainers and their configuration, data as token ids, checkpoints."""
