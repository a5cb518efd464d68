"""The config, inputs and seed of each stage of the loop."""
