"""The sweep's Optuna study where it is kept: a journal or a database, written behind the jobs."""
