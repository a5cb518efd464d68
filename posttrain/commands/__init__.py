"""The commands, one file each: parse, call, print. Heavy imports are inside the functions, so `--help` stays fast."""
