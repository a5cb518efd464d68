"""What a recipe's rounds will take, before they are run.

`rehearsal` walks through the loop and notes its stages, `amounts` says what each has to do, `costs` what that takes by
figures that `probe` measured, `timeline` how stages that overlap share the machine. Only `probe` runs anything.
"""
