# Asked anew of the program at each start of a shell, so that it never falls behind it.
aq completion fish | source
