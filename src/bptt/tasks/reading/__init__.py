"""Reading the user's files: texts, tables, series and sequences, each mistake named by file and place."""
