"""The commands, one file each: parse, call, print. Heavy imports are inside the functions: `--help` needs none."""
