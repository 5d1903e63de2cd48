"""What `python -m soup_verl.report` is made of: runs (folders -> data) -> compare -> figures -> page. No torch."""
