#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| docker::fuzzing::dockerfile(bytes));
