"""`zoo compare`: reads runs, puts them into one table per benchmark, and says which differences are real."""
