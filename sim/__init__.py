"""Experiments: labelled data, figures, the verification run, the report, benchmarks, and the command line."""
