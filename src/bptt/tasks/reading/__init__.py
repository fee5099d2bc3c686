"""Reading the user's data: tables, .ts archives, texts, times."""
