"""What training and sampling cost: formulas, measured rates, and analysis of compiled programs."""
