"""Which job may start where: the memory rule and its like, what they know of the machine and of jobs before."""
