//! Configurations: every text is a configuration or a list of problems, and what is shown means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use syncagent::config::Config;

fuzz_target!(|text: &str| {
    if let Some(config) = Config::parse(text).config {
        assert_eq!(Config::parse(&config.to_toml()).config.as_ref(), Some(&config));
    }
});
