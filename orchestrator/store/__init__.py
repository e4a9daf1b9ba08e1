"""The ledger: the durable record of a run, and its readers."""
