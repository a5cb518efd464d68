"""Checks of a recipe, and estimates of the time, memory and disk of its rounds, before a run.

`dry_run` records the stages of the loop, `stages.amounts` the work of each, `costs` the time of that from measurements
of `probe`, `simulate` how stages that overlap share the machine. Only `probe` runs stages: those of a `miniature` of
the recipe, on `known_answers` where they would sample.
"""
