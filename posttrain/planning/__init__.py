"""What the rounds of a recipe will take, before they are run.

`dry_run` records the stages of the loop, `stages.amounts` the work of each, `costs` the time of that from measurements
of `probe`, `simulate` how stages that overlap share the machine. Only `probe` runs stages.
"""
