//! The configuration file: raw TOML, then validated; every problem at once, with its line.
