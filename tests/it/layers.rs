//! Modules import their own floor and lower ones only.

use std::path::Path;

const FLOORS: [(&str, u32); 15] = [
    ("error", 0),
    ("model", 0),
    ("config", 1),
    ("plan", 1),
    ("lag", 1),
    ("disk", 2),
    ("scan", 2),
    ("watch", 2),
    ("apply", 2),
    ("peer", 3),
    ("refresh", 3),
    ("serve", 4),
    ("fuzz", 4),
    ("agent", 4),
    ("cli", 5),
];

fn floor(module: &str) -> u32 {
    FLOORS.iter().find(|(m, _)| *m == module).unwrap_or_else(|| panic!("no floor for {module}")).1
}

#[test]
fn no_module_imports_upwards() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for entry in walkdir::WalkDir::new(&src) {
        let entry = entry.unwrap();
        if entry.path().extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let own = entry.path().strip_prefix(&src).unwrap();
        let module = own.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if module == "lib" || module == "main" {
            continue;
        }
        for line in std::fs::read_to_string(entry.path()).unwrap().lines() {
            for part in line.split("crate::").skip(1) {
                let used: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                seen += 1;
                let what = format!("{}: {line}", own.display());
                assert!(floor(&used) <= floor(module), "{what} imports upwards");
            }
        }
    }
    assert!(seen > 50, "the test reads nothing");
}
