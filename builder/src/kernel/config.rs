//! Kernel configurations: what is required, compared with what a kernel was built with.
//!
//! Both are in the kernel's own format (`CONFIG_X=y`, `# CONFIG_X is not set`), so the required list
//! serves as a configuration fragment too. In it `m` means built in or as a module.

use std::collections::BTreeMap;

/// A list of required options in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Required(Vec<(String, String)>);

/// A line of the list that is no option.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Line {line}: expected `CONFIG_NAME=y`, `=m`, `=n` or `=value`, found {found:?}")]
pub struct BadLine {
    pub line: usize,
    pub found: String,
}

/// What an option that is not mentioned is.
const NOT_SET: &str = "n";

impl Required {
    /// Reads a list.
    ///
    /// # Errors
    /// A line is neither an option nor a comment.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let mut options = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            match option(line) {
                Some((name, value)) => options.push((name.to_owned(), value.to_owned())),
                None if line.is_empty() || line.starts_with('#') => {}
                None => {
                    return Err(BadLine {
                        line: index + 1,
                        found: line.to_owned(),
                    });
                }
            }
        }
        Ok(Self(options))
    }

    /// The required options that `config` does not have, as they should be.
    #[must_use]
    pub fn missing_in(&self, config: &str) -> Vec<String> {
        let actual: BTreeMap<&str, &str> = config.lines().filter_map(|line| option(line.trim())).collect();
        self.0
            .iter()
            .filter(|(name, wanted)| {
                let value = actual.get(name.as_str()).copied().unwrap_or(NOT_SET);
                !(value == wanted || (wanted == "m" && value == "y"))
            })
            .map(|(name, wanted)| match wanted.as_str() {
                "m" => format!("{name}=y or =m"),
                other => format!("{name}={other}"),
            })
            .collect()
    }
}

/// `CONFIG_X=value` or `# CONFIG_X is not set`.
fn option(line: &str) -> Option<(&str, &str)> {
    let unset = line
        .strip_prefix("# ")
        .and_then(|rest| rest.strip_suffix(" is not set"));
    let (name, value) = unset.map_or_else(|| line.split_once('='), |name| Some((name, NOT_SET)))?;
    let valid = name
        .strip_prefix("CONFIG_")
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    (valid && !value.is_empty()).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_NR=64\n";

    #[test]
    fn each_missing_option_is_named_as_it_should_be() {
        let cases: &[(&str, &[&str])] = &[
            ("CONFIG_A=y\nCONFIG_B=m\n", &[]),
            ("# why\n\nCONFIG_A=m\n", &[]),
            ("CONFIG_B=y", &["CONFIG_B=y"]),
            ("CONFIG_C=m\nCONFIG_D=y", &["CONFIG_C=y or =m", "CONFIG_D=y"]),
            (
                "# CONFIG_C is not set\n# CONFIG_D is not set\n# CONFIG_A is not set",
                &["CONFIG_A=n"],
            ),
            ("CONFIG_NR=64", &[]),
            ("CONFIG_NR=128", &["CONFIG_NR=128"]),
        ];
        for (required, missing) in cases {
            assert_eq!(
                Required::parse(required).unwrap().missing_in(CONFIG),
                *missing,
                "{required}"
            );
        }
    }

    #[test]
    fn a_line_that_is_no_option_is_told_with_its_number() {
        for bad in ["CONFIG_A", "CONFIG_=y", "config_a=y", "CONFIG_A=", "CONFIG_A B=y"] {
            let error = Required::parse(&format!("CONFIG_X=y\n{bad}\n")).unwrap_err();
            assert_eq!((error.line, error.found.as_str()), (2, bad));
        }
    }

    #[test]
    fn the_projects_own_list_is_well_formed() {
        let required = Required::parse(super::super::REQUIRED_CONFIG).unwrap();
        let names: std::collections::BTreeSet<_> = required.0.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), required.0.len(), "each option once");
        assert!(
            required
                .0
                .contains(&("CONFIG_USER_NS".to_owned(), "y".to_owned()))
        );
    }
}
