"""Stories as transcripts: commands, a line, what happened."""
