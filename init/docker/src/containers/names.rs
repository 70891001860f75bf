//! Names for containers that were given none.

const LEFT: &[&str] = &[
    "amber", "brisk", "calm", "clever", "cosy", "daring", "eager", "earnest", "fair", "fond", "gentle",
    "glad", "happy", "keen", "kind", "lively", "lucid", "merry", "mild", "modest", "nimble", "noble",
    "patient", "plain", "proud", "quick", "quiet", "ready", "serene", "sharp", "silent", "sober", "steady",
    "sunny", "swift", "tidy", "vivid", "warm", "wise", "witty",
];
const RIGHT: &[&str] = &[
    "agate",
    "basalt",
    "beryl",
    "boulder",
    "chalk",
    "chert",
    "cobble",
    "diorite",
    "dolomite",
    "feldspar",
    "flint",
    "gabbro",
    "garnet",
    "gneiss",
    "granite",
    "gravel",
    "gypsum",
    "jasper",
    "lava",
    "limestone",
    "marble",
    "marl",
    "menhir",
    "monolith",
    "obelisk",
    "obsidian",
    "onyx",
    "opal",
    "pebble",
    "pumice",
    "quartz",
    "sandstone",
    "schist",
    "shale",
    "slate",
    "stele",
    "topaz",
    "travertine",
    "tuff",
    "zircon",
];

/// A name that `taken` does not know.
pub(crate) fn generate(random: &[u8; 4], taken: impl Fn(&str) -> bool) -> String {
    let number = u32::from_le_bytes(*random) as usize;
    let count = LEFT.len() * RIGHT.len();
    let pick = |at: usize| {
        let (left, right) = (
            LEFT.get(at / RIGHT.len() % LEFT.len()),
            RIGHT.get(at % RIGHT.len()),
        );
        format!("{}_{}", left.unwrap_or(&"plain"), right.unwrap_or(&"stone"))
    };
    (0..count)
        .map(|step| pick(number % count + step))
        .find(|name| !taken(name))
        .unwrap_or_else(|| format!("{}_{number}", pick(number)))
}

/// Docker's form of a name: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub(crate) fn is_valid(name: &str) -> bool {
    let mut chars = name.chars();
    name.len() > 1
        && chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_valid_and_not_taken() {
        for number in [0u32, 1, 1599, 1600, u32::MAX] {
            let first = generate(&number.to_le_bytes(), |_| false);
            let second = generate(&number.to_le_bytes(), |name| name == first);
            assert!(is_valid(&first) && is_valid(&second), "{first} {second}");
            assert_ne!(first, second);
        }
        assert!(is_valid(&generate(&[7; 4], |_| true)));
    }

    #[test]
    fn names_have_dockers_form() {
        assert!(is_valid("web-1.a_b"));
        for bad in ["", "a", "-web", "a/b", "a b", "ä1"] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
