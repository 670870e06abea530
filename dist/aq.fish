# Each shell asks the program for the script at its start, so it is never out of date.
aq completion fish | source
