//! Directory objects, requests and answers of the object protocol, archives: never a panic, never a second meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use syncagent::fuzz;

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    match which % 3 {
        0 => fuzz::object(rest),
        1 => fuzz::wire(rest),
        _ => fuzz::archive(rest),
    }
});
