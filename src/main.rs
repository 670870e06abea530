//! `aq`: parse, run, print the error, exit code. No logic here.

fn main() {}
