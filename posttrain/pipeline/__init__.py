"""What each stage of the loop is given: its config, inputs and seed."""
