"""What training and sampling cost: formulas, measured ceilings, and what compiled programs need."""
