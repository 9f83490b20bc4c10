"""The parts of one job, which `app.py` puts together: its config in, its files and result out."""
