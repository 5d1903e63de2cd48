"""Free text that can be checked: instructions that are followed or not (IFEval), and summaries by ROUGE."""
