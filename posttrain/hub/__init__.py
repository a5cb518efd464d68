"""A run on the Hub: what of it goes there (`plan`), what its cards tell (`model_card`, `data_card`), and how it gets
there (`upload`). `after_rounds` does it during a run. Nothing here changes an artifact."""
