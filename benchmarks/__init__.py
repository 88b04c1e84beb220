"""What zonerd costs: each figure beside another one of the same run, since figures of one machine alone say little."""
