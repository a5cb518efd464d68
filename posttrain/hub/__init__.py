"""Pushes a run to the Hub: which files (`plan`), the cards (`model_card`, `data_card`), the upload (`upload`), and
pushes during a run (`after_rounds`). Nothing here changes an artifact."""
