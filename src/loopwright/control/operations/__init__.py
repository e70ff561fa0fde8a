"""One file per stage; each function is an operation, called the same by HTTP, the command line and Python."""
