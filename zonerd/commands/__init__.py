"""One verb a file; each module's `command` is the verb."""
