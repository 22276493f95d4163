"""The toy experiment: the unconstrained features model's curves, its arc behind a norm, its preference."""
