"""What came out of a fit: attributes, tables, conversions, checks by training again."""
