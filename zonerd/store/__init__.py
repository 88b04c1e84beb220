"""What is kept: the history in events.db, the answers in rollups.db, and the locks over both."""
