"""The toy experiment: curves of the unconstrained features model, its costs, texts and turns, and its arc behind a norm."""
