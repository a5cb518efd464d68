"""Models and policies outside a run: evaluated, compared, sampled from, talked to."""
