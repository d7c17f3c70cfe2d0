"""From sources to one validated, split and tokenised dataset."""
