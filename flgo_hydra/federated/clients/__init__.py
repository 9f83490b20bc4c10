"""What is one client's: the program that it runs, what it keeps, what it knows, the model that it would use itself."""
