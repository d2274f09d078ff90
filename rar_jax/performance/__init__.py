"""The cost of training and sampling: formulas, measured rates, and analysis of compiled programs."""
