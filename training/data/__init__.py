"""From files to splits, a fitted feature schema and arrays. One module per named data set."""
